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

test_that("head_importance() takes what attention_scores() takes", {
  skip_without_keras()
  keras()$utils$set_random_seed(3L)
  target <- input(5L, 14L)
  source <- keras()$Input(shape = list(5L, 14L), name = "source")
  output <- layer_multi_head_attention(target, 3, 4, value = source)
  model <- keras()$Model(list(target, source), output)
  model$compile(loss = "mse")
  x <- list(samples(), numbers(4, 5, 14, seed = 5))
  expected <- head_importance(model, x, samples(), batch_size = 3)
  expect_gt(diff(range(expected$importance)), 0.01)
  tensors <- lapply(x, keras()$ops$convert_to_tensor)
  expect_equal(
    head_importance(model, tensors, tensors[[1]], batch_size = 3),
    expected,
    tolerance = 1e-6
  )
  expect_snapshot(error = TRUE, {
    head_importance(model, list(x[[1]], x[[2]][1:3, , ]), samples())
    head_importance(model, list(x[[1]], "text"), samples())
  })
})
