new_layer <- function(...) {
  layer_multi_head_attention(num_heads = 5, key_dim = 13, ...)
}

kernel <- function(layer, dense = "_query_dense") {
  as.array(layer[[dense]]$kernel)
}

test_that("an R function initializes: it gets the shape as integers, and the dtype", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  seen <- list()
  layer <- new_layer(
    kernel_initializer = function(shape, dtype) {
      seen <<- c(seen, list(list(shape, dtype)))
      array(seq_len(prod(shape)), shape)
    },
    bias_initializer = function(shape) keras()$ops$full(as.list(shape), 0.5)
  )
  layer(x)
  expect_equal(seen[[1]], list(c(11L, 5L, 13L), "float32"))
  expect_equal(seen[[4]][[1]], c(5L, 13L, 11L))
  expect_equal(kernel(layer), array(seq_len(11 * 5 * 13), c(11, 5, 13)))
  expect_equal(as.array(layer$`_output_dense`$bias), array(0.5, 11))
})

test_that("each projection draws its own numbers from a random R function", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer(kernel_initializer = \(shape, ...) {
    array(stats::rnorm(prod(shape)), shape)
  })
  layer(x)
  expect_gt(max(abs(kernel(layer) - kernel(layer, "_key_dense"))), 0.1)
})

test_that("what an R function gives wrong is one clean error", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  f <- function(...) new_layer(..., name = "mine")(x)
  expect_snapshot(error = TRUE, {
    f(kernel_initializer = function(shape) array(0, c(2, 3)))
    f(kernel_initializer = function(shape) array(NA_real_, shape))
    f(kernel_initializer = function(shape) "zeros")
    f(kernel_initializer = function(shape) stop("no {numbers} today"))
  })
})

test_that("R functions regularize and constrain in training, in copies too", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  a <- input(3L, 11L)
  penalty <- function(w) keras()$ops$sum(keras()$ops$abs(w)) * 0.25
  made <- layer_multi_head_attention(
    a,
    5,
    13,
    kernel_initializer = function(shape) array(0.01, shape),
    kernel_regularizer = penalty,
    kernel_constraint = function(w) keras()$ops$clip(w, 0.005, 0.015),
    name = "mine"
  )
  model <- keras()$Model(a, made)
  layer <- model$get_layer("mine")
  kernels <- c("_query_dense", "_key_dense", "_value_dense", "_output_dense")
  losses <- vapply(model$losses, \(loss) as.numeric(as.array(loss)), 1)
  expect_equal(losses, rep(0.25 * 0.01 * 11 * 5 * 13, 4), tolerance = 1e-5)

  copy <- keras()$models$clone_model(model)
  expect_equal(kernel(copy$get_layer("mine")), kernel(layer))
  for (fitted in list(model, copy)) {
    fitted$compile(optimizer = "sgd", loss = "mse")
    fitted$fit(x, x, epochs = 3L, verbose = 0L)
    for (dense in kernels) {
      values <- kernel(fitted$get_layer("mine"), dense)
      expect_true(all(values >= 0.005 - 1e-7 & values <= 0.015 + 1e-7))
    }
  }
})

test_that("a regularizer may give an R number, and must give one", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer(kernel_regularizer = function(w) 3)
  layer(x)
  expect_equal(as.numeric(as.array(layer$losses[[1]])), 3)
  bad <- new_layer(kernel_regularizer = function(w) w)
  bad(x)
  expect_error(bad$losses, "must return one number")
})

test_that("a generator of objects without parentheses makes the object", {
  skip_without_keras()
  maker <- function() keras()$regularizers$L2(0.5)
  expect_identical(is_generator(maker), FALSE)
  environment(maker) <- new.env()
  assign("__class__", "some class", environment(maker))
  expect_true(is_generator(maker))
  expect_silent(check_keras_object(maker, "regularizer"))
  made <- as_keras_function(maker, "kernel_regularizer")
  expect_s3_class(made, "keras.src.regularizers.regularizers.L2")
})

test_that("a saved model predicts in a new session, where training says what is missing", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  a <- input(3L, 11L)
  made <- layer_multi_head_attention(
    a,
    5,
    13,
    kernel_initializer = function(shape) {
      array(stats::rnorm(prod(shape)), shape)
    },
    kernel_regularizer = function(w) keras()$ops$sum(w),
    activity_regularizer = function(x) keras()$ops$sum(x),
    kernel_constraint = function(w) w
  )
  model <- keras()$Model(a, made)
  model$compile(optimizer = "sgd", loss = "mse")
  output <- run_r_on_saved_model(
    model,
    x,
    c(
      "message <- tryCatch(",
      "  model$fit(data$x, data$x, verbose = 0L),",
      "  error = conditionMessage",
      ")",
      "print(grepl('`kernel_regularizer` was an R function of another', message))"
    )
  )
  expect_equal(utils::tail(output, 2), c("[1] TRUE", "[1] TRUE"))
})

test_that("initializers, regularizers and constraints are names, objects or functions", {
  expect_snapshot(error = TRUE, {
    layer(kernel_initializer = NULL)
    layer(kernel_initializer = 3)
    layer(bias_initializer = NA_character_)
    layer(kernel_initializer = function() 1)
    layer(kernel_regularizer = TRUE)
    layer(activity_regularizer = c("l1", "l2"))
    layer(kernel_constraint = function() 1)
    layer(bias_constraint = "")
  })
})

test_that("unknown names of initializers and others are told by argument", {
  skip_without_keras()
  expect_snapshot(error = TRUE, {
    layer(kernel_initializer = "bogus")
    layer(bias_initializer = "he_normall")
    layer(kernel_regularizer = "l3")
    layer(bias_constraint = "bogus")
  })
  expect_no_error(layer(
    kernel_initializer = "he_normal",
    bias_constraint = "non_neg"
  ))
})
