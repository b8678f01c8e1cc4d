test_that("segments are whole numbers of at least 0", {
  x <- list(query = numbers(2, 3, 5))
  expect_silent(check(segment_ids = matrix(1, 2, 3), inputs = x))
  expect_snapshot(error = TRUE, {
    check(segment_ids = 1:3)
    check(segment_ids = matrix(1.5, 2, 3))
    check(segment_ids = matrix(-1, 2, 3))
    check(segment_ids = matrix(NA, 2, 3))
    check(segment_ids = matrix(NA_integer_, 2, 3))
    check(segment_ids = matrix(1, 2, 4), inputs = x)
    check(bidirectional = matrix(NA_integer_, 2, 3))
    check(bidirectional = matrix(-1, 2, 3))
    check(bidirectional = matrix(0.5, 2, 3))
    check(bidirectional = matrix(1, 3, 3), inputs = x)
  })
})

test_that("ids beyond 32 bits are refused", {
  f <- function(positions) check_ids(positions)
  expect_silent(f(matrix(2^31 - 1)))
  expect_snapshot(error = TRUE, {
    f(matrix(2^31))
    f(matrix(NaN))
    f(matrix(Inf))
  })
})
