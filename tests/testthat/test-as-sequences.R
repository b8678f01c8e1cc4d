test_that("as_sequences() puts each value where its id, time and variable say", {
  # Three ids in mixed order, of 2, 5 and 3 rows.
  data <- data.frame(
    person = c("b", "c", "a", "c", "b", "c", "a", "c", "a", "c"),
    week = c(3L, 9L, 2L, 1L, 1L, 4L, 7L, 6L, 5L, 2L),
    steps = as.integer(101:110),
    sick = rep(c(TRUE, FALSE), 5)
  )
  made <- as_sequences(data, "person", "week", c("steps", "sick"))
  expect_s3_class(made, "sequences")
  expect_equal(made$ids, c("b", "c", "a"))
  expect_equal(dim(made$x), c(3, 5, 2))
  steps <- rbind(
    c(105, 101, 0, 0, 0),
    c(104, 110, 106, 108, 102),
    c(103, 109, 107, 0, 0)
  )
  expect_identical(made$x[,, 1], steps)
  expect_identical(made$x[2, , 2], c(0, 0, 0, 0, 0))
  expect_identical(made$x[1, , 2], c(1, 1, 0, 0, 0))
  expect_identical(made$mask, steps > 0)
  positions <- rbind(c(1, 3, 3, 3, 3), c(1, 2, 4, 6, 9), c(2, 5, 7, 7, 7))
  expect_equal(made$positions, positions)
  expect_type(made$positions, "integer")
})

test_that("`length` keeps the last rows and pads at the end", {
  data <- data.frame(id = c(1, 1, 1, 2), time = c(1, 2, 3, 1), x = 1:4 + 0.5)
  short <- as_sequences(data, "id", "time", "x", length = 2)
  expect_equal(short$x[,, 1], rbind(c(2.5, 3.5), c(4.5, 0)))
  expect_equal(short$times, c(2, 3, 1))
  expect_equal(as.data.frame(short)$x, c(2.5, 3.5, 4.5))
  long <- as_sequences(data, "id", "time", "x", length = 7)
  expect_equal(dim(long$x), c(2, 7, 1))
  expect_equal(rowSums(long$mask), c(3, 1))
  expect_equal(long$positions[1, ], c(1, 2, 3, 3, 3, 3, 3))
})

test_that("dates and date-times are positions in days", {
  data <- data.frame(id = "a", time = as.Date("1970-01-11") + c(5, 0), x = 1:2)
  dates <- as_sequences(data, "id", "time", "x")
  expect_equal(dates$positions, rbind(c(10, 15)))
  expect_equal(dates$times, as.Date("1970-01-11") + c(0, 5))
  data$time <- as.POSIXct("1970-01-02", tz = "UTC") + 3600 * c(18, 6)
  times <- as_sequences(data, "id", "time", "x")
  expect_equal(times$positions, rbind(c(1.25, 1.75)))
  expect_equal(as.data.frame(times)$time, rev(data$time))
})

test_that("tibbles, grouped or not, are data frames", {
  skip_if_not_installed("tibble")
  data <- data.frame(id = factor(c("q", "p")), time = 1:2, x = c(5, 6))
  made <- as_sequences(tibble::as_tibble(data), "id", "time", "x")
  expect_equal(made, as_sequences(data, "id", "time", "x"))
  grouped <- structure(
    tibble::as_tibble(data),
    class = c("grouped_df", "tbl_df", "tbl", "data.frame"),
    groups = data.frame(id = c("p", "q"))
  )
  expect_equal(as_sequences(grouped, "id", "time", "x"), made)
})

test_that("the mask of sequences makes a layer ignore their padding", {
  skip_without_keras()
  values <- as.vector(numbers(8, 6))
  data <- expand.grid(time = 1:8, id = 1:2)
  data <- cbind(data, matrix(values, 8, 6)[data$time, ] * data$id)
  data <- data[data$id == 1 | data$time <= 5, ]
  vars <- as.character(1:6)
  sequences <- as_sequences(data, "id", "time", vars)
  layer <- layer_multi_head_attention(
    num_heads = 3,
    key_dim = 4,
    position = position_rotary()
  )
  attend <- function(sequences) {
    layer(
      sequences$x,
      value_mask = sequences$mask,
      positions = sequences$positions
    )
  }
  together <- as.data.frame(sequences, predictions = attend(sequences))
  one <- as_sequences(data[data$id == 2, ], "id", "time", vars)
  expect_equal(dim(one$x), c(1, 5, 6))
  alone <- as.data.frame(one, predictions = attend(one))
  expect_equal(
    together[together$id == 2, ],
    alone,
    tolerance = 1e-5,
    ignore_attr = "row.names"
  )
})
