test_that("the report is a data frame that ends with a sentence", {
  session <- devices_session()
  expect_snapshot(writeLines(session$report))
})

test_that("a plan is what a built model has", {
  session <- devices_session()
  expect_snapshot(writeLines(session$plan))
})

test_that("what is not split is refused", {
  session <- devices_session()
  expect_match(
    session$compiled,
    "leave compile\\(\\) out.*only shapes are wanted"
  )
  expect_match(session$whole, "whole on each of 4 devices: 'att/query/kernel'")
  expect_match(
    session$unused,
    "Rules that no weight of a model matches: \"haed\""
  )
})

test_that("arguments are checked before Python", {
  expect_snapshot(error = TRUE, sharding_report())
  expect_snapshot(error = TRUE, sharding_report(1))
  expect_snapshot(error = TRUE, sharding_report(function() 1))
  expect_snapshot(error = TRUE, check_sharding(1))
})
