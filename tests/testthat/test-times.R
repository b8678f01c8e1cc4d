test_that("dates and date-times count days", {
  day <- as.Date("2024-02-28")
  noon <- as.POSIXct("2024-02-28 12:00", tz = "UTC")
  expect_true(is_times(day) && is_times(noon) && is_times(as.POSIXlt(noon)))
  expect_false(is_times(19781) || is_times(noon - noon))
  expect_equal(as_days(day), 19781)
  expect_equal(as_days(noon), 19781.5)
  expect_equal(as_days(c(2.5, 1)), c(2.5, 1))
})
