test_that("scales by position print as their calls", {
  expect_snapshot({
    scale_by_position()
    scale_by_position(attn_scale = 0.2, floor_scale = 16384L, offset = 0)
    scale_by_position("log", length = 512)
  })
})

test_that("scales by position follow their rules", {
  expect_snapshot(error = TRUE, {
    scale_by_position("logn")
    scale_by_position("log")
    scale_by_position("log", length = 1)
    scale_by_position("log", length = 9, offset = 0)
    scale_by_position(length = 9)
    scale_by_position(floor_scale = 0)
    scale_by_position(attn_scale = NA)
    scale_by_position("llama4", 0.1)
    layer(query_scale = "log")
    layer(query_scale = scale_by_position)
  })
})

test_that("queries are multiplied by the factor of their position", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  made <- layer(query_scale = scale_by_position("log", length = 2))
  made(x)
  at <- c(0, 6, 31)
  factors <- pmax(1, log(at + 1) / log(2))
  norm <- function(x, of) if (of == "query") x * factors else x
  expected <- reference_attention(made, x, norm = norm)$attention_output
  expect_close(made(x, positions = matrix(at, 1)), expected)
  expect_match(format(made), "ScaleByPosition")

  made <- layer(
    query_scale = scale_by_position(attn_scale = 0.5, floor_scale = 2)
  )
  made(x)
  factors <- 1 + 0.5 * log(1 + floor((0:2 + 1) / 2))
  expected <- reference_attention(made, x, norm = norm)$attention_output
  expect_close(made(x), expected)
  config <- made$get_config()$query_scale
  expect_identical(
    config,
    list(type = "llama4", attn_scale = 0.5, floor_scale = 2, offset = 1)
  )
})

test_that("values are divided by their root mean square", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  made <- layer(value_norm = TRUE)
  made(x)
  expect_match(format(made), "value norm")
  norm <- function(x, of) {
    if (of == "value") x / sqrt(rowMeans(x^2) + 1e-6) else x
  }
  expected <- reference_attention(made, x, norm = norm)$attention_output
  expect_close(made(x), expected)
  expect_snapshot(layer(value_norm = NA), error = TRUE)
})

test_that("keys are used as values", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  one <- layer(use_key_as_value = TRUE)
  two <- layer()
  for (made in list(one, two)) {
    made(x)
  }
  expect_match(format(one), "keys as values")
  weights <- one$get_weights() # kernel and bias of query, key and output
  two$set_weights(weights[c(1:4, 3:4, 5:6)])
  expect_close(two(x), as.array(one(x)))
  expect_snapshot(error = TRUE, {
    layer(use_key_as_value = 1)
    layer_multi_head_attention(NULL, 2, 4, 3, use_key_as_value = TRUE)
  })
})
