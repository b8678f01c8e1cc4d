test_that("a model with LoRA freezes the rest, saves and reloads", {
  model <- two_layers()
  x <- samples()
  before <- model$predict(x, verbose = 0L)
  enable_lora(model, rank = 2)
  expect_equal(model$predict(x, verbose = 0L), before, tolerance = 1e-5)
  frozen <- function() lapply(model$non_trainable_weights, as.array)
  as_they_were <- frozen()
  keras <- reticulate::import("keras")
  model$compile(optimizer = keras$optimizers$SGD(0.5), loss = "mse")
  loss <- model$evaluate(x, samples(), verbose = 0L)
  model$fit(x, samples(), epochs = 3L, verbose = 0L)
  expect_lt(model$evaluate(x, samples(), verbose = 0L), loss)
  weights <- function(values) values[lengths(values) > 1] # not the counters of seeds
  expect_equal(weights(frozen()), weights(as_they_were))
  after <- model$predict(x, verbose = 0L)

  folder <- withr::local_tempdir()
  model$save(file.path(folder, "model.keras"))
  loaded <- keras$models$load_model(file.path(folder, "model.keras"))
  expect_equal(loaded$predict(x, verbose = 0L), after, tolerance = 1e-5)

  # Weights are saved with what was learned in them: a model without factors takes them.
  model$save_weights(file.path(folder, "model.weights.h5"))
  plain <- two_layers()
  plain$load_weights(file.path(folder, "model.weights.h5"))
  expect_equal(plain$predict(x, verbose = 0L), after, tolerance = 1e-5)
})

test_that("enable_lora() trains the factors alone", {
  model <- two_layers()
  enable_lora(model, rank = 2, projections = "query")
  expect_length(model$trainable_weights, 4)
  expect_snapshot(error = TRUE, {
    enable_lora(model, rank = 0)
  })
  expect_snapshot(error = TRUE, {
    enable_lora(model, rank = 2, projections = "keys")
  })
})
