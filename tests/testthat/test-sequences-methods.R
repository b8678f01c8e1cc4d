# Two stations in mixed order, of 3 and 2 days.
stations <- function() {
  data <- data.frame(
    station = c("b", "b", "b", "a", "a"),
    day = as.Date("2024-03-01") + c(2, 0, 1, 0, 3),
    temperature = c(9.5, 7, 8, 11, 12.5),
    rain = c(0, 4, 1, 0, 2)
  )
  list(
    data = data,
    sequences = as_sequences(data, "station", "day", c("temperature", "rain"))
  )
}

test_that("as.data.frame() gives the rows back, ordered by id and time", {
  made <- stations()
  expected <- made$data[c(2, 3, 1, 4, 5), ]
  row.names(expected) <- NULL
  expect_identical(as.data.frame(made$sequences), expected)
  ids <- factor(made$data$station, c("a", "b", "c"))
  factors <- transform(made$data, station = ids)
  back <- as.data.frame(as_sequences(factors, "station", "day", "rain"))
  expect_identical(back$station, ids[c(2, 3, 1, 4, 5)])
})

test_that("predictions go back to their rows, without the padding", {
  made <- stations()$sequences
  one <- made$x[,, 1] * 10
  expect_equal(
    as.data.frame(made, predictions = one)$.pred,
    c(70, 80, 95, 110, 125)
  )
  several <- array(seq_len(2 * 3 * 5), c(2, 3, 5))
  frame <- as.data.frame(made, predictions = several)
  expect_equal(names(frame)[5:9], paste0(".pred_", 1:5))
  expect_equal(frame$.pred_4, several[cbind(c(1, 1, 1, 2, 2), c(1:3, 1:2), 4)])
  dimnames(several) <- list(NULL, NULL, letters[1:5])
  frame <- as.data.frame(made, predictions = several)
  expect_equal(names(frame)[5:9], paste0(".pred_", letters[1:5]))
})

test_that("tensors are predictions", {
  skip_without_keras()
  made <- stations()$sequences
  tensor <- keras()$ops$convert_to_tensor(made$x[,, 2, drop = FALSE])
  frame <- as.data.frame(made, predictions = tensor)
  expect_equal(frame$.pred, frame$rain)
})

test_that("predictions of another shape are refused", {
  made <- stations()
  x <- made$sequences
  data <- transform(made$data, .pred = rain)
  twice <- as_sequences(data, "station", "day", ".pred")
  expect_snapshot(error = TRUE, {
    as.data.frame(x, predictions = 1:2)
    as.data.frame(x, predictions = matrix(0, 2, 4))
    as.data.frame(x, predictions = array(0, c(3, 2, 1)))
    as.data.frame(x, predictions = "text")
    as.data.frame(x, prediction = x$x)
    as.data.frame(twice, predictions = matrix(0, 2, 3))
  })
})

test_that("`[` takes sequences", {
  made <- stations()
  chosen <- made$sequences[2:1]
  expect_equal(chosen$ids, c("a", "b"))
  frame <- as.data.frame(chosen)
  expect_equal(frame$temperature, c(11, 12.5, 7, 8, 9.5))
  expect_equal(frame$day, made$data$day[c(4, 5, 2, 3, 1)])
  expect_equal(as.data.frame(chosen[-1])$rain, c(4, 1, 0))
  expect_snapshot(error = TRUE, chosen[3])
})

test_that("head() and tail() take the first and last sequences", {
  sequences <- stations()$sequences
  expect_equal(head(sequences), sequences)
  expect_equal(head(sequences, 1), sequences[1])
  expect_equal(tail(sequences, 1), sequences[2])
  expect_equal(head(sequences, -1), sequences[1])
})

test_that("sequences print their sizes", {
  made <- stations()$sequences
  expect_snapshot({
    made
    made[1]
  })
})
