test_that("any number of rows is predicted", {
  session <- devices_session()
  expect_equal(session$padded, "7 5 40 TRUE ")
})

test_that("arguments are checked before Python", {
  expect_snapshot(error = TRUE, predict_padded(1, matrix(1)))
})
