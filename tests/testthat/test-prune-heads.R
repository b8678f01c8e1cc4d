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
    prune_heads(model, heads = list(first = c(1, 4)))
    prune_heads(model, heads = list(first = 1:3))
    prune_heads(model, heads = list(second = 1:2))
    prune_heads(model, heads = list(third = 1))
    prune_heads(model, heads = list(first = 1), fraction = 0.5)
  })
  importance <- head_importance(model, samples(), samples())
  other <- importance
  other$layer <- "third"
  expect_snapshot(error = TRUE, {
    prune_heads(model, importance = importance)
    prune_heads(model, importance = importance[-1, ], fraction = 0.5)
    prune_heads(model, importance = other, fraction = 0.5)
  })
  expect_snapshot(error = TRUE, {
    prune_heads(model, importance = data.frame(), fraction = 0.1)
  })
  expect_snapshot(error = TRUE, {
    prune_heads(
      model,
      importance = structure(list(a = 1), class = "head_importance"),
      fraction = 0.5
    )
  })
})
