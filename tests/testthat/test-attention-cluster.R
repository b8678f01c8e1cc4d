test_that("one process has all rows, and saves its model in one file", {
  session <- devices_session()
  expect_equal(
    session$rows,
    c("TRUE ", " [1]  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16")
  )
})

test_that("what comes too late or outside is refused", {
  session <- devices_session()
  expect_match(
    session$cluster,
    "Process 0 could not join .* restart the session"
  )
  expect_match(
    session$`rows outside`,
    "for code within `with_distribution\\(\\)`"
  )
})

test_that("arguments are checked before Python", {
  expect_snapshot(error = TRUE, attention_cluster(1234, 2, 0))
  expect_snapshot(error = TRUE, attention_cluster("localhost:1234", 2, 2))
  expect_snapshot(error = TRUE, local_rows(0, 4))
  expect_snapshot(error = TRUE, save_gathered(1, "model.keras"))
})
