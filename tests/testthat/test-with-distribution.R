test_that("a model is built and trained on 8 devices", {
  session <- devices_session()
  expect_equal(session$train, "TRUE ")
})

test_that("batches that do not divide leave the model its weights", {
  session <- devices_session()
  expect_match(
    session$ragged,
    "batches of 7 do not divide over 2 groups.*predict_padded"
  )
  expect_equal(session$`after ragged`, "13 ")
})

test_that("a model of other devices is refused", {
  session <- devices_session()
  expect_match(
    session$outside,
    "build the model inside .*is on 1 device, .* has 8"
  )
})

test_that("the distribution ends with the code", {
  session <- devices_session()
  expect_equal(session$`error inside`, "stopped TRUE ")
})

test_that("arguments are checked before Python", {
  expect_snapshot(error = TRUE, with_distribution())
  expect_snapshot(error = TRUE, with_distribution(8, 1))
})
