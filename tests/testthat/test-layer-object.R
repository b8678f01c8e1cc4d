test_that("a layer prints one line that says what it is", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  expect_snapshot({
    layer_multi_head_attention(num_heads = 5, key_dim = 13, name = "a")
    layer_multi_head_attention(
      num_heads = 5,
      key_dim = 13,
      value_dim = 17,
      name = "a"
    )
    layer_group_query_attention(
      head_dim = 5,
      num_query_heads = 6,
      num_key_value_heads = 3,
      use_causal_mask = TRUE,
      sliding_window = 128,
      use_gate = TRUE,
      dropout = 0.1,
      name = "b"
    )
    layer_group_query_attention(
      head_dim = 5,
      num_query_heads = 6,
      num_key_value_heads = 3,
      qk_norm = TRUE,
      logit_soft_cap = 30,
      attention_sink = TRUE,
      name = "c"
    )
  })
  layer <- layer_multi_head_attention(num_heads = 5, key_dim = 13, name = "a")
  expect_invisible(print(layer))
  expect_identical(
    format(layer),
    "<MultiHeadAttention \"a\": 5 heads, size 13; not built>"
  )
  layer(x)
  # Kernels and biases of query, key and value (11 to 5 x 13), and of the output back.
  parameters <- 3 * (11 * 65 + 65) + 65 * 11 + 11
  expect_match(format(layer), "; 3,066 parameters>$")
  expect_equal(parameters, 3066)
})

test_that("a layer that is called checks and names what it was given", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_multi_head_attention(num_heads = 5, key_dim = 13, name = "a")
  gqa <- layer_group_query_attention(
    head_dim = 5,
    num_query_heads = 6,
    num_key_value_heads = 3
  )
  expect_snapshot(error = TRUE, {
    layer()
    layer("x")
    layer(matrix(1, 3, 11))
    layer(x, mask = matrix(TRUE, 3, 3))
    layer(x, attention_mask = matrix(NA, 3, 3))
    layer(x, x, x, x)
    layer(x, training = "no")
    layer(array(NA_real_, c(2, 3, 11)))
    layer(keras()$Sequential(), attention_mask = diag(3) == 1)
    gqa(array(1, c(2, 3, 5, 7)))
  })
})

test_that("a layer is added to a Sequential model by calling it", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_multi_head_attention(num_heads = 5, key_dim = 13)
  model <- keras()$Sequential()
  expect_invisible(model |> layer())
  expect_equal(dim(as.array(model(x))), dim(x))
})

test_that("the layer stays the Python object it is", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_multi_head_attention(
    num_heads = 5,
    key_dim = 13,
    name = "same"
  )
  model <- keras()$Sequential(list(layer))
  expect_equal(reticulate::py_id(model$layers[[1]]), reticulate::py_id(layer))
  same <- model$layers[[1]]
  same$trainable <- FALSE
  expect_false(layer$trainable)
  layer$trainable <- TRUE
  model(x)
  weights <- layer$get_weights()
  other <- layer_multi_head_attention(num_heads = 5, key_dim = 13)
  other(x)
  other$set_weights(weights)
  expect_close(other(x), as.array(layer(x)))
})

test_that("dropout is active with training = TRUE alone", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_multi_head_attention(
    num_heads = 5,
    key_dim = 13,
    dropout = 0.5,
    seed = 1
  )
  calm <- as.array(layer(x))
  expect_close(layer(x, training = FALSE), calm)
  expect_gt(max(abs(as.array(layer(x, training = TRUE)) - calm)), 1e-3)
})

test_that("a model of R pipes trains, is saved and read in a new session", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  a <- input(3L, 11L)
  b <- a |>
    layer_group_query_attention(5, 6, 3, use_causal_mask = TRUE) |>
    layer_multi_head_attention(5, 13, attention_mask = lower.tri(diag(3), TRUE))
  model <- keras()$Model(a, b)
  model$compile(optimizer = "sgd", loss = "mse")
  before <- model$evaluate(x, x, verbose = 0L)
  model$fit(x, x, epochs = 5L, verbose = 0L)
  expect_lt(model$evaluate(x, x, verbose = 0L), before)

  output <- run_r_on_saved_model(model, x, "print(model$layers[[2]])")
  expect_equal(
    utils::tail(output, 2),
    c(
      "[1] TRUE",
      sub(
        "grouped.*\"",
        paste0(model$layers[[2]]$name, "\""),
        format(model$layers[[2]])
      )
    )
  )
})

# Keras imports TensorFlow, where it is installed, to write a config: seconds, and a
# gigabyte of memory.
test_that("calling and printing a layer loads no other backend", {
  skip_on_cran()
  skip_without_keras()
  skip_if(is.null(backend_version("jax")), "JAX is not installed")
  output <- run_r(
    c(
      "suppressMessages(library(kerasattention))",
      "layer <- layer_group_query_attention(head_dim = 2, num_query_heads = 2, num_key_value_heads = 1)",
      "y <- layer(array(1, c(2, 3, 5)))",
      "print(layer)",
      "print('tensorflow' %in% names(reticulate::import('sys')$modules))"
    ),
    env = "KERAS_BACKEND=jax"
  )
  expect_match(output[[length(output) - 1]], "<GroupQueryAttention")
  expect_equal(utils::tail(output, 1), "[1] FALSE")
})
