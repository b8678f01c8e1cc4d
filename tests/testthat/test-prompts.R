test_that("what is no token id is refused", {
  f <- function(tokens) check_prompts(tokens)
  expect_silent(f(c(3, 1, 4)))
  expect_silent(f(list(3, matrix(0:3, 2))))
  expect_snapshot(error = TRUE, {
    f("text")
    f(c(1, NA))
    f(c(1, -2))
    f(list(1, 2.5))
    f(list())
    f(list(1, integer()))
    f(array(1, c(1, 1, 1)))
    f(NaN)
    f(c(1, Inf))
    f(2^31)
    f(list(1, c(2, 2^40)))
  })
})

test_that("prompts become integers of Python, each with its axes", {
  skip_without_keras()
  f <- function(tokens) check_prompts(tokens)
  expect_snapshot(error = TRUE, f(reticulate::import("numpy")))
  prompts <- as_prompts(list(c(3, 1, 4), 9))
  expect_equal(
    lapply(prompts, reticulate::py_to_r),
    list(array(c(3, 1, 4)), array(9))
  )
  matrix <- as_prompts(rbind(c(3, 1), c(4, 1)))
  expect_equal(reticulate::py_to_r(matrix), rbind(c(3, 1), c(4, 1)))
  expect_equal(as.character(matrix$dtype), "int32")
})
