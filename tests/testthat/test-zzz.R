test_that("loading starts no Python and changes no environment variable", {
  output <- run_r(c(
    "loadNamespace('reticulate')",
    "before <- Sys.getenv()",
    "suppressMessages(library(kerasattention))",
    "print(identical(before, Sys.getenv()))",
    "print(reticulate::py_available())"
  ))
  expect_equal(utils::tail(output, 2), c("[1] TRUE", "[1] FALSE"))
})

test_that("arguments are checked before Python is started", {
  output <- run_r(c(
    "suppressMessages(library(kerasattention))",
    "is_ours <- function(cnd) print(class(cnd)[[1]])",
    "x <- array(1, c(2, 3, 5))",
    "tryCatch(layer_multi_head_attention(x, 2.5, 4), error = is_ours)",
    "mask <- matrix(NA, 3, 3)",
    "tryCatch(layer_multi_head_attention(x, 2, 4, attention_mask = mask), error = is_ours)",
    "print(reticulate::py_available())"
  ))
  expect_equal(
    utils::tail(output, 3),
    c(rep("[1] \"kerasattention_error\"", 2), "[1] FALSE")
  )
})

test_that("loading adds less than a tenth of a second to reticulate", {
  skip_on_cran()
  code <- c(
    "loadNamespace('reticulate')",
    "used <- system.time(suppressMessages(library(kerasattention)))",
    "cat(used[['user.self']] + used[['sys.self']])"
  )
  # Time of the processor, and the best of several, as others may use the machine.
  for (try in 1:5) {
    seconds <- as.numeric(utils::tail(run_r(code), 1))
    if (seconds < 0.1) break
  }
  expect_lt(seconds, 0.1)
})

test_that("Keras that was loaded before the package finds its classes all the same", {
  skip_without_keras()
  output <- run_r(c(
    "keras <- reticulate::import('keras')",
    "suppressMessages(library(kerasattention))",
    "layer <- layer_multi_head_attention(num_heads = 2, key_dim = 3, name = 'a')",
    "print(layer)"
  ))
  expect_equal(
    utils::tail(output, 1),
    "<MultiHeadAttention \"a\": 2 heads, size 3; not built>"
  )
})

test_that("library() is enough to load a saved model, before or after Keras", {
  skip_on_cran()
  skip_without_keras()
  inputs <- input(3L, 5L)
  model <- keras()$Model(inputs, inputs |> layer_group_query_attention(5, 6, 3))
  file <- withr::local_tempfile(fileext = ".keras")
  model$save(file)
  load <- sprintf("model <- keras$saving$load_model(%s)", deparse(file))
  shape <- "cat(unlist(model$output_shape))"
  library <- "suppressMessages(library(kerasattention))"
  keras <- "keras <- reticulate::import('keras')"
  for (code in list(c(library, keras), c(keras, library))) {
    expect_equal(utils::tail(run_r(c(code, load, shape)), 1), "3 5")
  }
  # Without it the error is Keras's, which the FAQ quotes.
  failed <- "error <- tryCatch(model <- keras$saving$load_model(%s), error = conditionMessage)"
  output <- run_r(c(keras, sprintf(failed, deparse(file)), "cat(error)"))
  expect_match(
    output,
    "could not be deserialized properly",
    all = FALSE
  )
})
