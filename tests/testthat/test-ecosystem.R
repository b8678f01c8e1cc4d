# The layers among other packages and in other processes.

small_model <- function() {
  keras()$utils$set_random_seed(1L)
  inputs <- input(3L, 5L)
  model <- keras()$Model(inputs, inputs |> layer_group_query_attention(5, 6, 3))
  model$compile(optimizer = "sgd", loss = "mse")
  model
}

test_that("magrittr's pipe gives what R's pipe gives", {
  skip_if_not_installed("magrittr")
  skip_without_keras()
  x <- numbers(7, 3, 5)
  `%>%` <- getExportedValue("magrittr", "%>%")
  layer <- layer_multi_head_attention(num_heads = 5, key_dim = 13)
  expect_identical(as.array(x %>% layer()), as.array(x |> layer()))
  result <- x %>%
    layer_multi_head_attention(5, 13, return_attention_scores = TRUE)
  expect_equal(dim(as.array(result$attention_scores)), c(7, 5, 3, 3))
})

test_that("an R generator feeds fit() what the array would have", {
  skip_without_keras()
  x <- numbers(7, 3, 5)
  y <- numbers(7, 3, 5, seed = 2)
  whole <- small_model()
  whole$fit(x, y, batch_size = 7L, epochs = 3L, shuffle = FALSE, verbose = 0L)

  # Keras reads ahead in a thread of its own, which must not wait for R, and wants a
  # generator of Python's own kind.
  batches <- reticulate::py_iterator(
    function() {
      reticulate::tuple(reticulate::np_array(x), reticulate::np_array(y))
    },
    prefetch = 1L
  )
  as_generator <- reticulate::py_eval(
    "lambda batches: (batch for batch in batches)"
  )
  fed <- small_model()
  fed$fit(
    as_generator(batches),
    steps_per_epoch = 1L,
    epochs = 3L,
    verbose = 0L
  )
  expect_close(
    fed$predict(x, verbose = 0L),
    whole$predict(x, verbose = 0L)
  )
})

test_that("a tf.data dataset feeds fit() what the array would have", {
  skip_without_keras()
  skip_if(is.null(backend_version("tensorflow")), "TensorFlow is not installed")
  skip_if(
    wanted_backend() != "tensorflow",
    "tf.data is tested on its own backend"
  )
  x <- numbers(7, 3, 5)
  y <- numbers(7, 3, 5, seed = 2)
  whole <- small_model()
  whole$fit(x, y, batch_size = 7L, epochs = 3L, shuffle = FALSE, verbose = 0L)

  data <- reticulate::import("tensorflow")$data$Dataset
  data <- data$from_tensor_slices(reticulate::tuple(x, y))$batch(7L)
  fed <- small_model()
  fed$fit(data, epochs = 3L, shuffle = FALSE, verbose = 0L)
  expect_close(
    fed$predict(x, verbose = 0L),
    whole$predict(x, verbose = 0L)
  )
})

test_that("the summary of a model shows the layer, its shape and its parameters", {
  skip_without_keras()
  model <- small_model()
  lines <- character()
  model$summary(print_fn = function(line, ...) lines <<- c(lines, line))
  text <- paste(lines, collapse = "\n")
  expect_match(text, "GroupedQueryAttention", fixed = TRUE)
  expect_match(text, "(None, 3, 5)", fixed = TRUE)
  # Query 5 x 6 x 5 + 6 x 5; key and value 5 x 3 x 5 + 3 x 5 each; output 6 x 5 x 5 + 5.
  expect_match(text, "515", fixed = TRUE)
})

test_that("use_virtualenv() chooses the Python", {
  skip_on_cran()
  skip_without_keras()
  environment <- reticulate::py_config()$virtualenv
  skip_if(
    is.null(environment) || !nzchar(environment),
    "Python is in no virtualenv"
  )
  output <- run_r(
    c(
      "Sys.unsetenv('RETICULATE_PYTHON')",
      sprintf("reticulate::use_virtualenv(%s)", deparse(environment)),
      "suppressMessages(library(kerasattention))",
      "layer <- layer_multi_head_attention(num_heads = 2, key_dim = 3)",
      "print(layer$built)",
      "cat(reticulate::py_config()$virtualenv)"
    ),
    env = "PYTHONPATH="
  )
  expect_equal(utils::tail(output, 2), c("[1] FALSE", environment))
})

test_that("the arguments and their defaults can be completed", {
  for (layer in list(layer_group_query_attention, layer_multi_head_attention)) {
    arguments <- formals(layer)
    expect_identical(arguments$sliding_window, NULL)
    expect_identical(arguments$use_gate, FALSE)
    expect_identical(arguments$kernel_initializer, "glorot_uniform")
    expect_true(all(
      c("attention_mask", "training", "position") %in% names(arguments)
    ))
  }
})
