test_that("positions are numbers or times", {
  x <- list(query = numbers(2, 3, 5))
  expect_silent({
    check(positions = matrix(0:2, 1, 3), inputs = x)
    check(positions = matrix(c(-1.5, 0, 2.25), 2, 3), inputs = x)
    check(positions = as.Date("2024-01-01") + 0:2, inputs = x)
    check(positions = as.POSIXct("2024-01-01", tz = "UTC") + 0:2, inputs = x)
  })
  day <- as.Date("2024-01-01")
  expect_snapshot(error = TRUE, {
    check(positions = 1:3)
    check(positions = c(0.5, 1, 2))
    check(positions = matrix(TRUE, 2, 3))
    check(positions = matrix(NA_integer_, 2, 3))
    check(positions = matrix(c(0, Inf, 1), 1))
    check(positions = matrix(NaN, 2, 3))
    check(positions = matrix(2^31, 2, 3))
    check(positions = matrix(1.5, 2, 4), inputs = x)
    check(positions = c(day, NA, day))
    check(positions = day + 0:3, inputs = x)
    check(positions = day - (day - 1:3))
  })
})

test_that("times are days since the earliest of each sequence", {
  days <- as.Date("2024-02-28") + c(0, 2, 1)
  expect_equal(as_numbers(days), matrix(c(0, 2, 1), 1))
  times <- as.POSIXct("2024-02-28 12:00", tz = "UTC") +
    3600 * c(6, 0, 12, 3, 48, 0)
  expect_equal(as_numbers(times[1:3]), matrix(c(0.25, 0, 0.5), 1))
  expect_equal(as_numbers(as.POSIXlt(times[1:3])), matrix(c(0.25, 0, 0.5), 1))
  dim(times) <- c(2, 3)
  expected <- rbind(c(0, 0.25, 1.75), c(0, 0.125, 0))
  expect_equal(as_numbers(times), expected)
  expect_equal(as_numbers(matrix(c(5.5, 7), 1)), matrix(c(5.5, 7), 1))
  expect_null(as_numbers(NULL))
})

test_that("whole numbers become integers, others keep their fractions", {
  skip_without_keras()
  expect_equal(as.character(as_positions(matrix(0:2, 1))$dtype), "int32")
  expect_equal(as.character(as_positions(matrix(0:2 / 2, 1))$dtype), "float64")
  expect_equal(
    as.character(as_positions(as.Date("2024-01-01") + 0:2)$dtype),
    "int32"
  )
})

test_that("causal masks and windows compare real positions and times", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  at <- rbind(c(0.5, 2.75, 0.75), c(7.25, 1.5, 1.5))
  made <- layer(sliding_window = 2)
  mask <- array(FALSE, c(2, 6, 3, 3))
  for (b in 1:2) {
    away <- outer(at[b, ], at[b, ], "-") # of queries to keys
    seen <- away >= 0 & abs(away) < 2
    for (n in 1:6) {
      mask[b, n, , ] <- seen
    }
  }
  made(x)
  expected <- reference_attention(made, x, mask = mask)$attention_output
  expect_close(made(x, positions = at, use_causal_mask = TRUE), expected)
  times <- as.POSIXct("2024-03-01", tz = "UTC") + 86400 * c(at)
  dim(times) <- dim(at)
  expect_close(made(x, positions = times, use_causal_mask = TRUE), expected)
})

test_that("times a minute apart keep their order, many years after 1970", {
  skip_without_keras()
  x <- numbers(1, 5, 11)
  made <- layer(position = position_alibi())
  start <- as.POSIXct("2024-03-01", tz = "UTC")
  scores <- made(
    x,
    positions = start + 60 * 0:4,
    use_causal_mask = TRUE,
    return_attention_scores = TRUE
  )$attention_scores
  later <- upper.tri(diag(5))
  for (n in 1:6) {
    weights <- as.array(scores)[1, n, , ]
    expect_true(all(weights[later] == 0) && all(weights[!later] > 0))
  }
})
