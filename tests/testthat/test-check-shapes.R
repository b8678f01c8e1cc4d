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
