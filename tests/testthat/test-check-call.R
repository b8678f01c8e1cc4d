# Two sequences, T = 3 queries, S = 7 keys, D = 5, N = 6 heads
check <- function(
  ...,
  inputs = list(query = numbers(2, 3, 5), value = numbers(2, 7, 5))
) {
  check_call(inputs, list(...), axes = c(3, 3), heads = 6)
}

test_that("masks of every broadcastable shape pass", {
  for (dim in list(
    c(3, 7),
    c(2, 3, 7),
    c(2, 1, 3, 7),
    c(2, 6, 3, 7),
    c(1, 1, 1, 7),
    c(2, 1, 7)
  )) {
    expect_silent(check(attention_mask = array(TRUE, dim)))
    expect_silent(check(attention_bias = array(0.5, dim)))
  }
  expect_silent(check(attention_mask = matrix(c(0L, 1L, 1L), 3, 7)))
})

test_that("masks of other shapes and values are refused, with the way out", {
  expect_snapshot(error = TRUE, {
    check(attention_mask = TRUE)
    check(attention_mask = c(TRUE, FALSE, TRUE))
    check(attention_mask = matrix(TRUE, 2, 7))
    check(attention_mask = matrix(TRUE, 7, 3))
    check(attention_mask = array(TRUE, c(2, 5, 3, 7)))
    check(attention_mask = array(TRUE, c(1, 1, 2, 3, 7)))
    check(attention_mask = matrix(c(TRUE, NA, TRUE), 3, 7))
    check(attention_mask = matrix(c(1, NA, 0), 3, 7))
    check(attention_mask = matrix(c(0, -1e9, 0), 3, 7))
    check(attention_mask = matrix("a", 3, 7))
    check(attention_mask = as.data.frame(matrix(TRUE, 3, 7)))
    check(attention_bias = matrix(0, 3, 5))
    check(attention_bias = matrix(NA_real_, 3, 7))
  })
})

test_that("masks of padding have a row for each sequence", {
  expect_silent(check(query_mask = matrix(TRUE, 2, 3)))
  expect_silent(check(
    value_mask = matrix(TRUE, 2, 7),
    key_mask = matrix(1, 1, 7)
  ))
  expect_snapshot(error = TRUE, {
    check(query_mask = TRUE)
    check(value_mask = rep(TRUE, 7))
    check(key_mask = matrix(TRUE, 2, 3))
    check(query_mask = matrix(2, 2, 3))
  })
})

test_that("segments and positions are whole numbers of at least 0", {
  x <- list(query = numbers(2, 3, 5))
  expect_silent(check(
    segment_ids = matrix(1, 2, 3),
    positions = matrix(0:2, 1, 3),
    inputs = x
  ))
  expect_snapshot(error = TRUE, {
    check(segment_ids = 1:3)
    check(segment_ids = matrix(1.5, 2, 3))
    check(segment_ids = matrix(-1, 2, 3))
    check(segment_ids = matrix(NA, 2, 3))
    check(positions = matrix(NA_integer_, 2, 3))
    check(positions = matrix(1, 2, 4), inputs = x)
  })
})

test_that("the shapes of query, value and key go together", {
  x <- numbers(2, 3, 5)
  expect_snapshot(error = TRUE, {
    check(inputs = list(query = matrix(1, 3, 5)))
    check(inputs = list(query = array(1, c(2, 3, 5, 7))))
    check(inputs = list(query = x, value = numbers(3, 7, 5)))
    check(
      inputs = list(
        query = x,
        value = numbers(2, 7, 5),
        key = numbers(2, 11, 5)
      )
    )
    check(inputs = list(query = x, value = matrix(1, 3, 5)))
  })
})

test_that("flags of a call are TRUE, FALSE or NULL", {
  expect_silent(check(
    training = NULL,
    use_causal_mask = FALSE,
    return_attention_scores = TRUE
  ))
  expect_snapshot(error = TRUE, {
    check(training = "yes")
    check(use_causal_mask = NA)
    check(return_attention_scores = 1)
  })
})

test_that("a layer that is not called keeps the causal mask and refuses the rest", {
  f <- function(...) check_call(NULL, list(...), axes = NULL)
  expect_silent(f(use_causal_mask = TRUE, return_attention_scores = FALSE))
  expect_snapshot(error = TRUE, {
    f(attention_mask = matrix(TRUE, 3, 3))
    f(return_attention_scores = TRUE)
    f(training = FALSE)
    f(segment_ids = matrix(1, 2, 3))
  })
})

test_that("sizes that a symbolic tensor leaves open match any", {
  skip_without_keras()
  x <- list(query = input(NULL, 5L))
  expect_equal(shape_of(x$query), c(NA, NA, 5))
  expect_silent(check(attention_mask = array(TRUE, c(2, 6, 3, 3)), inputs = x))
  x <- list(query = input(3L, 5L))
  expect_snapshot(error = TRUE, {
    check(attention_mask = matrix(TRUE, 2, 3), inputs = x)
    check(attention_mask = array(TRUE, c(2, 4, 3, 3)), inputs = x)
    check(positions = matrix(1, 2, 7), inputs = x)
  })
})

test_that("a mask that says TRUE for padding, or for hidden, is questioned", {
  lengths <- c(7, 4)
  padding <- outer(lengths, 1:7, `<`)
  expect_snapshot({
    check(value_mask = padding)
    check(
      inputs = list(query = numbers(2, 7, 5)),
      attention_mask = upper.tri(diag(7))
    )
  })
  expect_warning(
    check(value_mask = padding + 0),
    class = "kerasattention_warning"
  )
})

test_that("masks that are right are not questioned", {
  x <- list(query = numbers(2, 7, 5))
  right <- outer(c(7, 4), 1:7, `>=`)
  expect_silent(check(value_mask = right))
  expect_silent(check(value_mask = right[, 7:1]))
  expect_silent(check(value_mask = rbind(right[2, ], FALSE)))
  expect_silent(check(value_mask = matrix(FALSE, 2, 7)))
  expect_silent(check(inputs = x, attention_mask = upper.tri(diag(7), TRUE)))
  expect_silent(check(inputs = x, attention_mask = lower.tri(diag(7))))
})

test_that("ids beyond 32 bits are refused, masks without values are not judged", {
  f <- function(positions) check_ids(positions)
  g <- function(attention_mask) check_mask(attention_mask)
  expect_silent(f(matrix(2^31 - 1)))
  expect_silent(g(matrix(TRUE, 0, 0)))
  expect_snapshot(error = TRUE, {
    f(matrix(2^31))
    f(matrix(NaN))
    f(matrix(Inf))
    g(matrix(NaN))
    g(table(c(TRUE, FALSE), c(TRUE, FALSE)))
  })
})
