test_that("names of layers are told from other values", {
  layers <- function(layers) check_layers(layers)
  inputs <- function(x) check_model_input(x)
  expect_silent(layers(NULL))
  expect_silent(layers(c("first", "second")))
  expect_silent(layers(2))
  expect_silent(inputs(list(matrix(1L, 2, 3), array(0, c(2, 3, 5)))))
  expect_snapshot(error = TRUE, {
    layers(0)
    layers(NA_character_)
    inputs(list())
    inputs(list(1, "text"))
  })
})

test_that("a model is no layer, a layer no model, a symbolic tensor no data", {
  skip_without_keras()
  x <- input(5L, 14L)
  dense <- keras()$layers$Dense(3L)
  f <- function(model) check_model(model)
  g <- function(layer) check_layer(layer)
  h <- function(x) check_model_input(x)
  expect_silent(f(keras()$Model(x, dense(x))))
  expect_silent(g(layer_multi_head_attention(num_heads = 2, key_dim = 3)))
  expect_snapshot(error = TRUE, {
    f(dense)
    g(dense)
    h(x)
  })
})

test_that("R counts from 1, Python from 0, and integers stay integers", {
  skip_without_keras()
  expect_null(zero_based(NULL))
  expect_equal(zero_based(c(3, 1)), list(2L, 0L))
  expect_equal(as_layers(2), list(1L))
  expect_equal(as_layers("first"), list("first"))
  inputs <- as_model_input(list(matrix(1:6, 2), matrix(1, 2, 3)))
  dtypes <- vapply(inputs, function(x) as.character(x$dtype), "")
  expect_equal(dtypes, c("int32", "float32"))
})

test_that("one sample keeps its axis, and a list of one array is the array", {
  skip_without_keras()
  model <- toy_model()
  x <- toy_input()
  expect_identical(
    attention_scores(model, list(x))$maps,
    attention_scores(model, x)$maps
  )
  expect_no_warning(head_importance(model, list(x), x, loss = "mse"))
  f <- function(x) check_input_axes(x, model)
  expect_silent(f(x))
  expect_silent(f(x[1, , , drop = FALSE]))
  expect_snapshot(error = TRUE, {
    f(x[1, , ])
    f(list(x[1, , ]))
    f(x[1, 1, ])
    attention_scores(model, x[1, , ])
  })
})
