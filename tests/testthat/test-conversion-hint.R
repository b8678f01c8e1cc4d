test_that("classes that are no plain numbers are named, with the conversion", {
  skip_if_not_installed("Matrix")
  f <- function(attention_bias) check_array(attention_bias)
  g <- function(value_mask) check_mask(value_mask)
  h <- function(positions) check_ids(positions)
  k <- function(num_heads) check_whole_number(num_heads, min = 1)
  integer64 <- structure(c(1, 2) * 4.94e-324, class = "integer64")
  expect_snapshot(error = TRUE, {
    f(Matrix::Matrix(diag(3), sparse = TRUE))
    f(as.difftime(diag(3), units = "hours"))
    f(as.Date("2024-02-28") + 1:3)
    f(as.POSIXct("2024-02-28", tz = "UTC"))
    f(integer64)
    f(matrix(as.numeric(unclass(integer64)), 1))
    f(mtcars)
    g(Matrix::Matrix(diag(3) > 0, sparse = TRUE))
    g(as.data.frame(diag(3) > 0))
    g(xtabs(~ cyl + gear, mtcars))
    g(matrix(as.numeric(unclass(integer64)), 1))
    h(integer64)
    h(matrix(as.numeric(unclass(integer64)), 1))
    h(ts(1:3))
    k(integer64[1])
    k(structure(4.94e-324, class = "integer64"))
    k(table(1))
  })
})

test_that("the conversion of a matrix of times keeps its axes", {
  times <- as.Date("2024-02-28") + 1:6
  dim(times) <- c(2, 3)
  hint <- conversion_hint(times, "times")
  code <- regmatches(hint, regexpr("`.*`", hint))
  expect_equal(dim(eval(str2lang(gsub("`", "", code)))), c(2, 3))
  times <- structure(as.POSIXct(times), dim = c(2, 3))
  expect_match(
    conversion_hint(times, "times"),
    "`array(as.numeric(times), dim(times)) / 86400` gives days",
    fixed = TRUE
  )
})

test_that("tables and time series are arrays of their numbers", {
  f <- function(x, ...) check_array(x, ...)
  expect_silent(f(xtabs(~ cyl + gear + am, mtcars), axes = 3))
  expect_silent(f(EuStockMarkets, axes = 2))
  expect_silent(f(ts(1:3)))
  skip_without_keras()
  counts <- xtabs(~ cyl + gear + am, mtcars)
  plain <- array(as.vector(counts), dim(counts))
  expect_equal(as.array(as_tensor(counts)), plain)
  layer <- layer_multi_head_attention(num_heads = 2, key_dim = 3)
  expect_equal(as.array(layer(counts)), as.array(layer(plain)))
})

test_that("only arrays of nothing but tiny numbers are lost integers", {
  tiny <- 4.94e-324
  expect_true(lost_integer64(tiny))
  expect_true(lost_integer64(c(rep(0, 200), NaN, tiny)))
  expect_false(lost_integer64(c(rep(0, 200), tiny, 1)))
  expect_false(lost_integer64(c(1, tiny)))
  expect_false(lost_integer64(c(tiny, Inf)))
  expect_false(lost_integer64(numeric()))
  expect_false(lost_integer64(c(0, NA)))
  expect_false(lost_integer64(1L))
})
