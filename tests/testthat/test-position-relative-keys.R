test_that("relative keys print as they are given, and reach Python", {
  expect_snapshot({
    position_relative_keys(64)
    position_relative_keys(511, "huang")
    position_relative_keys(16, "transformer_xl")
    position_relative_keys(512, "deberta", num_buckets = 512)
  })
  skip_without_keras()
  made <- as_python(position_relative_keys(512, "deberta", num_buckets = 512))
  config <- made$get_config()
  expect_identical(config$max_distance, 512L)
  expect_identical(config$num_buckets, 512L)
  expect_equal(config$kind, "deberta")
})

test_that("wrong arguments are told apart", {
  expect_snapshot(error = TRUE, {
    position_relative_keys()
    position_relative_keys(0)
    position_relative_keys(2.5)
    position_relative_keys(4, "xl")
    position_relative_keys(4, num_buckets = 8)
    position_relative_keys(40, "deberta", num_buckets = 10)
    position_relative_keys(3, "deberta", num_buckets = 8)
  })
})

# One head against the formula.
expect_relative <- function(kind) {
  x <- numbers(2, 5, 6)
  # One head as wide as the input, whose projections are the identity.
  layer <- layer_multi_head_attention(
    num_heads = 1,
    key_dim = 6,
    use_bias = FALSE,
    position = position_relative_keys(2, kind)
  )
  layer(x)
  table <- numbers(5, 1, 6)
  identity <- diag(6)
  layer$set_weights(list(
    table,
    array(identity, c(6, 1, 6)),
    array(identity, c(6, 1, 6)),
    array(identity, c(6, 1, 6)),
    array(identity, c(1, 6, 6))
  ))
  expected <- array(0, dim(x))
  for (b in 1:2) {
    logits <- x[b, , ] %*% t(x[b, , ])
    for (q in 1:5) {
      for (k in 1:5) {
        distance <- max(-2, min(2, k - q))
        relative <- table[distance + 3, 1, ]
        seen <- x[b, q, ] + if (kind == "huang") x[b, k, ] else 0
        logits[q, k] <- logits[q, k] + sum(seen * relative)
      }
    }
    weights <- exp(logits / sqrt(6))
    expected[b, , ] <- (weights / rowSums(weights)) %*% x[b, , ]
  }
  expect_close(layer(x), expected)
}

test_that("the query, and the key, is multiplied with the key of the distance", {
  skip_without_keras()
  expect_relative("shaw")
  expect_relative("huang")
})

test_that("tables are shared, saved and refused for grouped heads", {
  skip_without_keras()
  shared <- position_relative_keys(3, "deberta")
  inputs <- input(5L, 16L)
  outputs <- inputs |>
    layer_multi_head_attention(num_heads = 2, key_dim = 4, position = shared) |>
    layer_multi_head_attention(num_heads = 2, key_dim = 4, position = shared)
  model <- keras()$Model(inputs, outputs)
  expect_length(model$weights, 18)
  x <- numbers(2, 5, 16)
  path <- withr::local_tempfile(fileext = ".keras")
  model$save(path)
  expect_close(keras()$saving$load_model(path)(x), model(x), 1e-6)
  expect_snapshot(error = TRUE, {
    layer_group_query_attention(
      x,
      head_dim = 4,
      num_query_heads = 4,
      num_key_value_heads = 2,
      position = position_relative_keys(3, "deberta"),
      name = "attention"
    )
  })
})
