test_that("qk_norm follows its rules", {
  expect_snapshot(error = TRUE, {
    layer(qk_norm = NULL)
    layer(qk_norm = NA)
    layer(qk_norm = "rsm")
    layer(qk_norm = list())
    layer(qk_norm = list("layer"))
    layer(qk_norm = list(typ = "layer"))
    layer(qk_norm = list(type = "layer", type = "rms"))
    layer(qk_norm = list(type = NULL))
    layer(qk_norm = list(over = "heads"))
    layer(qk_norm = list(epsilon = 0))
    layer(qk_norm = list(epsilon = NaN))
    layer(qk_norm = list(offset = "1"))
    layer(qk_norm = list(after_position = NA))
    layer(qk_norm = list(bias = TRUE))
    layer(qk_norm = list(learned = FALSE, offset = 1))
  })
})

test_that("a norm is in the config as it was given", {
  skip_without_keras()
  norm <- list(type = "layer", epsilon = 1e-5, per_head = TRUE)
  expect_identical(layer(qk_norm = norm)$get_config()$qk_norm, norm)
  expect_identical(
    layer(qk_norm = list(offset = 1L))$get_config()$qk_norm$offset,
    1
  )
  expect_identical(layer(qk_norm = "rms")$get_config()$qk_norm, TRUE)
  expect_match(format(layer(qk_norm = "l2")), "query-key norm")
})

test_that("norms are those of R's own formula", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  norms <- list(
    rms = function(x) x / sqrt(rowMeans(x^2) + 1e-6),
    layer = function(x) {
      x <- x - rowMeans(x)
      x / sqrt(rowMeans(x^2) + 1e-6)
    },
    l2 = function(x) x / sqrt(rowSums(x^2) + 1e-6)
  )
  for (type in names(norms)) {
    made <- layer(qk_norm = list(type = type, offset = 1))
    made(x)
    for (name in c("query_norm", "key_norm")) {
      made$vectors()[[name]]$assign(numbers(5, seed = nchar(name)))
    }
    norm <- function(x, of) {
      if (of == "value") {
        return(x)
      }
      scale <- as.array(made$vectors()[[paste0(of, "_norm")]])
      sweep(norms[[type]](x), 2, 1 + scale, "*")
    }
    expected <- reference_attention(made, x, norm = norm)
    expect_close(made(x), expected$attention_output)
  }
})

test_that("scales and biases of a checkpoint are loaded", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  norm <- list(type = "layer", over = "width", bias = TRUE)
  made <- layer(qk_norm = norm, use_bias = FALSE)
  made(x)
  matrices <- list(
    query = numbers(30, 11),
    key = numbers(15, 11),
    value = numbers(15, 11),
    output = numbers(11, 30)
  )
  load <- function(...) do.call(load_projections, c(list(made), matrices, ...))
  expect_snapshot(error = TRUE, {
    load(list(query_norm = list(1:30)))
    load(list(query_norm = list(1:30, 1:30), key_norm = list(1:15, "a")))
    load(list(query_norm = list(1:30, 1:30), key_norm = list(1:3, 1:15)))
  })
  load(list(query_norm = list(1:30, 31:60), key_norm = list(1:15, 16:30)))
  scale <- as.array(made$vectors()$query_norm)
  # Row by row: head by head.
  expect_equal(scale, matrix(1:30, 6, 5, byrow = TRUE), ignore_attr = TRUE)
  bias <- as.array(made$vectors()$key_norm_bias)
  expect_equal(bias, matrix(16:30, 3, 5, byrow = TRUE), ignore_attr = TRUE)
})
