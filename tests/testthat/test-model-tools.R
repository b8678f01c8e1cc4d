# attention_rollout(), head_importance(), prune_heads(), load_projections(), enable_lora()

two_layers <- function() {
  skip_without_keras()
  keras <- reticulate::import("keras")
  keras$utils$set_random_seed(3L)
  input <- keras$Input(reticulate::tuple(5L, 14L))
  output <- input |>
    layer_multi_head_attention(3, 4, name = "first") |>
    layer_group_query_attention(4, 6, 2, name = "second")
  model <- keras$Model(input, output)
  model$compile(loss = "mse")
  model
}

samples <- function(n = 4) {
  set.seed(2)
  array(rnorm(n * 5 * 14), c(n, 5, 14))
}

test_that("attention_rollout() is the product of the flows", {
  scores <- attention_scores(two_layers(), samples(2))
  rollout <- attention_rollout(scores)
  expect_equal(dim(rollout$rollout), c(2, 2, 5, 5))
  flow <- function(map) 0.5 * apply(map[2, , , ], 2:3, mean) + 0.5 * diag(5)
  expected <- flow(scores$maps$second) %*% flow(scores$maps$first)
  expect_equal(rollout$rollout[2, 2, , ], expected, tolerance = 1e-6)
  frame <- as.data.frame(rollout)
  one <- frame$layer == "second" &
    frame$sample == 2 &
    frame$query == 3 &
    frame$key == 4
  expect_equal(frame$weight[one], expected[3, 4], tolerance = 1e-6)
  expect_snapshot(rollout)
  expect_snapshot(error = TRUE, {
    attention_rollout(scores[,, 1:2])
  })
  expect_snapshot(error = TRUE, {
    attention_rollout(1)
  })
})

test_that("head_importance() has a row for each head", {
  model <- two_layers()
  importance <- head_importance(model, samples(), samples())
  expect_s3_class(importance, c("head_importance", "data.frame"))
  expect_equal(importance$layer, rep(c("first", "second"), c(3, 6)))
  expect_equal(importance$head, c(1:3, 1:6))
  lengths <- tapply(importance$importance^2, importance$layer, sum)
  expect_equal(as.vector(lengths), c(1, 1), tolerance = 1e-5)
  expect_snapshot(error = TRUE, {
    head_importance(model, samples())
    head_importance(model, samples(), samples(3))
    head_importance(model, samples(), 1:4)
    head_importance(model, samples(), samples()[,, 1])
    head_importance(model, samples(), samples()[, 1:3, ])
    head_importance(model, samples(), samples(), loss = stdin())
    prune_heads(
      model,
      importance = structure(list(a = 1), class = "head_importance"),
      fraction = 0.5
    )
    attention_rollout(structure(list(), class = "attention_scores"))
    plot(importance, wrong = 1)
  })
})

test_that("head_importance() takes numbers of classes where the loss does", {
  model <- two_layers()
  classes <- array(c(0L, 5L, 3L, 1L), c(4, 5))
  loss <- "sparse_categorical_crossentropy"
  expect_s3_class(
    head_importance(model, samples(), classes, loss = loss),
    "head_importance"
  )
})

test_that("prune_heads() removes heads, counted from one", {
  model <- two_layers()
  x <- samples()
  expect_snapshot(
    smaller <- prune_heads(model, heads = list(first = 2, second = c(1, 4)))
  )
  expect_equal(smaller$get_layer("first")$num_heads, 2)
  expect_equal(smaller$get_layer("second")$num_query_heads, 4)

  # By hand: the heads' rows of the output kernels at zero.
  for (name in c("first", "second")) {
    kernel <- model$get_layer(name)$projection("output")$kernel
    value <- as.array(kernel)
    value[if (name == "first") 2 else c(1, 4), , ] <- 0
    kernel$assign(value)
  }
  expect_equal(
    smaller$predict(x, verbose = 0L),
    model$predict(x, verbose = 0L),
    tolerance = 1e-5
  )
})

test_that("prune_heads() takes the least important heads", {
  model <- two_layers()
  importance <- head_importance(model, samples(), samples())
  # A third of nine heads.
  smaller <- prune_heads(
    model,
    importance = importance,
    fraction = 0.34,
    quiet = TRUE
  )
  left <- smaller$get_layer("first")$num_heads +
    smaller$get_layer("second")$num_query_heads
  expect_equal(left, 6)
  one <- prune_heads(
    model,
    importance = importance,
    fraction = 0.12,
    quiet = TRUE
  )
  expect_equal(one$get_layer("first")$num_heads, 2)
})

test_that("prune_heads() refuses", {
  model <- two_layers()
  expect_snapshot(error = TRUE, {
    prune_heads(model)
  })
  expect_snapshot(error = TRUE, {
    prune_heads(model, heads = c(1, 2))
  })
  expect_snapshot(error = TRUE, {
    prune_heads(model, heads = list(first = 0))
  })
  expect_snapshot(error = TRUE, {
    prune_heads(model, importance = data.frame(), fraction = 0.1)
  })
})

test_that("load_projections() takes torch's matrices", {
  skip_without_keras()
  layer <- layer_group_query_attention(
    head_dim = 4,
    num_query_heads = 6,
    num_key_value_heads = 2
  )
  x <- array(rnorm(5 * 14), c(1, 5, 14))
  layer(x)
  set.seed(1)
  parts <- list(
    query = matrix(rnorm(24 * 14), 24),
    key = matrix(rnorm(8 * 14), 8),
    value = matrix(rnorm(8 * 14), 8),
    output = matrix(rnorm(14 * 24), 14)
  )
  bias <- rnorm(24)
  load_projections(
    layer,
    query = list(parts$query, bias),
    key = list(parts$key, numeric(8)),
    value = list(parts$value, numeric(8)),
    output = list(parts$output, numeric(14))
  )
  query <- matrix(
    aperm(as.array(layer$projection("query")(x))[1, , , ], c(1, 3, 2)),
    5
  )
  expect_equal(
    query,
    x[1, , ] %*% t(parts$query) + rep(bias, each = 5),
    tolerance = 1e-5
  )
  expect_snapshot(error = TRUE, {
    load_projections(
      layer,
      t(parts$query),
      parts$key,
      parts$value,
      parts$output
    )
  })
  expect_snapshot(error = TRUE, {
    load_projections(layer, parts$query, parts$key, parts$value)
  })
  expect_snapshot(error = TRUE, {
    load_projections("layer", parts$query, parts$key, parts$value, parts$output)
  })
})

test_that("load_projections() changes nothing if anything does not fit", {
  skip_without_keras()
  layer <- layer_group_query_attention(
    head_dim = 4,
    num_query_heads = 6,
    num_key_value_heads = 2,
    use_bias = FALSE
  )
  layer(array(0, c(1, 5, 14)))
  before <- layer$get_weights()
  parts <- list(
    query = numbers(24, 14),
    key = numbers(8, 14),
    value = numbers(8, 14)
  )
  load <- function(...) do.call(load_projections, c(list(layer), parts, ...))
  expect_snapshot(error = TRUE, {
    load(output = list(numbers(24, 14)))
  })
  expect_snapshot(error = TRUE, {
    load(output = list(list(numbers(14, 24), numeric(14))))
  })
  expect_snapshot(error = TRUE, {
    load(output = list(numbers(14, 24)), sink = list(numeric(6)))
  })
  expect_equal(layer$get_weights(), before)
})

test_that("load_projections() undoes the permutation of llama.cpp", {
  skip_without_keras()
  plain <- layer_group_query_attention(
    head_dim = 6,
    num_query_heads = 4,
    num_key_value_heads = 2,
    use_bias = FALSE
  )
  plain(array(0, c(1, 5, 7)))
  loaded <- function(permute, ...) {
    load_projections(
      plain,
      query = permute(numbers(24, 7), 4),
      key = permute(numbers(12, 7, seed = 2), 2),
      value = numbers(12, 7, seed = 3),
      output = numbers(7, 24, seed = 4),
      ...
    )
    plain$get_weights()
  }
  # Of each head the rows 1, 4, 2, 5, 3, 6: the two that turn together side by side.
  side_by_side <- function(rows, heads) {
    rows[outer(c(1, 4, 2, 5, 3, 6), 6 * (seq_len(heads) - 1), `+`), ]
  }
  expected <- loaded(function(rows, heads) rows)
  expect_equal(loaded(side_by_side, undo_permutation = TRUE), expected)
  expect_false(isTRUE(all.equal(loaded(side_by_side), expected)))
})

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
