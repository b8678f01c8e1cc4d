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

test_that("a logical bias is refused: it would mask nothing out", {
  expect_error(
    check(attention_bias = matrix(TRUE, 3, 7)),
    "attention_bias.*numbers.*attention_mask",
    class = "kerasattention_error"
  )
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

test_that("masks without values are not judged, tables are no masks", {
  g <- function(attention_mask) check_mask(attention_mask)
  expect_silent(g(matrix(TRUE, 0, 0)))
  expect_snapshot(error = TRUE, {
    g(matrix(NaN))
    g(table(c(TRUE, FALSE), c(TRUE, FALSE)))
  })
})
