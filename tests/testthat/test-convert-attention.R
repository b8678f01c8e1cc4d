# A model of Keras's own attention between other layers.
keras_model <- function() {
  skip_without_keras()
  keras()$utils$set_random_seed(3L)
  x <- input(5L, 14L)
  attention <- keras()$layers$MultiHeadAttention(6L, 4L, name = "attention")
  output <- attention(keras()$layers$Dense(14L, name = "before")(x), x)
  model <- keras()$Model(x, keras()$layers$Dense(3L, name = "after")(output))
  model$compile(loss = "mse")
  model
}

weights_of <- function(model, layer) {
  lapply(model$get_layer(layer)$weights, as.array)
}

test_that("Keras's layer becomes ours, weights and outputs kept", {
  model <- keras_model()
  x <- numbers(2, 5, 14)
  converted <- convert_attention(model)
  layer <- converted$get_layer("attention")
  expect_s3_class(layer, "kerasattention.AttentionLayer")
  expect_close(converted(x), model(x))
  for (name in c("before", "attention", "after")) {
    expect_equal(weights_of(converted, name), weights_of(model, name))
  }
  expect_true(converted$compiled)
})

test_that("heads are merged as R does it", {
  model <- keras_model()
  # query, key, value and output: a kernel and a bias each
  old <- weights_of(model, "attention")
  for (method in c("mean", "first")) {
    merged <- convert_attention(model, num_key_value_heads = 2, method = method)
    layer <- merged$get_layer("attention")
    expect_equal(layer$num_key_value_heads, 2)
    new <- weights_of(merged, "attention")
    take <- if (method == "mean") mean else function(heads) heads[[1]]
    for (i in c(3, 5)) {
      groups <- apply(old[[i]], c(1, 3), function(heads) {
        c(take(heads[1:3]), take(heads[4:6]))
      })
      expect_equal(new[[i]], aperm(groups, c(2, 1, 3)), tolerance = 1e-6)
    }
    expect_equal(new[c(1, 2, 7, 8)], old[c(1, 2, 7, 8)])
  }
})

test_that("random heads come from the seed", {
  model <- keras_model()
  draw <- function(seed) {
    weights_of(convert_attention(model, 1, "random", seed), "attention")[[3]]
  }
  expect_identical(draw(1), draw(1))
  expect_false(identical(draw(1), draw(2)))
  withr::local_seed(1)
  first <- draw(NULL)
  set.seed(1)
  expect_identical(draw(NULL), first)
})

test_that("wrong arguments are told apart", {
  model <- keras_model()
  expect_snapshot(error = TRUE, {
    convert_attention()
    convert_attention("model")
    convert_attention(model$get_layer("attention"))
    convert_attention(model, 0)
    convert_attention(model, 1.5)
    convert_attention(model, 4)
    convert_attention(model, 2, "median")
    convert_attention(model, 2, "random", seed = -1)
  })
})
