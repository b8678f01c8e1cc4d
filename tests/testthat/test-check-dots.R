test_that("what is in `...` has a known name", {
  f <- function(...) {
    check_dots(list(...), c("attention_mask", "name", "training"))
  }
  expect_silent(f(name = "a", training = TRUE))
  expect_silent(f())
  expect_snapshot(error = TRUE, {
    f(1)
    f(mask = 1)
    f(trainig = TRUE)
    f(foo = list(1, 2))
    f(name = "a", name = "b")
  })
})
