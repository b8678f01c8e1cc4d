test_that("columns are named by strings, and exist", {
  data <- data.frame(id = 1:2, time = 1:2, temperature = 1:2)
  expect_snapshot(error = TRUE, {
    as_sequences(data)
    as_sequences(as.matrix(data), "id", "time", "temperature")
    as_sequences(data[0, ], "id", "time", "temperature")
    as_sequences(data, patient, "time", "temperature")
    as_sequences(data, "id", time, "temperature")
    as_sequences(data, "id", "time", c(temperature, rain))
    as_sequences(data, c("id", "time"), "time", "temperature")
    as_sequences(data, "id", "time", character())
    as_sequences(data, "id", "time", "temp")
    as_sequences(data, "id", "time", c("temperature", "temperature"))
    as_sequences(data, "id", "time", "temperature", length = 0)
  })
})

test_that("ids and times are complete, and tell rows apart", {
  make <- function(id = 1:3, time = 1:3) {
    data <- data.frame(x = 1:3)
    data$id <- id
    data$time <- time
    as_sequences(data, "id", "time", "x")
  }
  expect_snapshot(error = TRUE, {
    make(id = c("a", NA, "b"))
    make(id = list(1, 2, 3))
    make(time = c(1, NA, NA))
    make(time = c(1, Inf, 2))
    make(time = c("2024-01-01", "2024-01-02", "2024-01-03"))
    make(time = as.difftime(1:3, units = "hours"))
    make(id = c("b", "a", "a"), time = as.Date("2024-02-28") + c(0, 1, 1))
  })
})

test_that("variables are numbers without NA, never codes of categories", {
  make <- function(x) {
    data <- data.frame(id = 1:3, time = 1:3)
    data$x <- x
    as_sequences(data, "id", "time", "x")
  }
  expect_snapshot(error = TRUE, {
    make(factor(c("low", "high", "low")))
    make(c("low", "high", "low"))
    make(c(1, NA, 3))
    make(c(NaN, NaN, 3))
    make(as.Date("2024-02-28") + 1:3)
    make(as.difftime(1:3, units = "hours"))
    make(structure(c(1, 2, 3) * 4.94e-324, class = "integer64"))
    make(c(1, 2, 3) * 4.94e-324)
    make(list(1, 2, 3))
    make(diag(3))
    make(c(1i, 2, 3))
  })
})
