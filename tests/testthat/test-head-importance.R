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
