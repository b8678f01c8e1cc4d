test_that("whole numbers are whole, in range and no NA", {
  f <- function(size, ...) check_whole_number(size, ...)
  expect_silent(f(64))
  expect_silent(f(64L, min = 1))
  expect_silent(f(NULL, null = TRUE))
  expect_snapshot(error = TRUE, {
    f(64.5)
    f(NA)
    f(NA_integer_)
    f("4")
    f(c(4, 8))
    f(TRUE)
    f(NULL)
    f(Inf, min = 1)
    f(0, min = 1, null = TRUE)
    f(9, min = 1, max = 8)
    f(3e9)
    f(1:9, max = 3, hint = "Try 3.")
  })
})

test_that("several whole numbers come as a vector or a list", {
  f <- function(axes, ...) check_whole_numbers(axes, ...)
  expect_silent(f(c(1, 2), min = 1))
  expect_silent(f(list(1, 2L)))
  expect_silent(f(NULL, null = TRUE))
  expect_snapshot(error = TRUE, {
    f(c(1, 2.5))
    f(c(1, NA))
    f(list(1, "a"))
    f(numeric())
    f(c(0, 3), min = 1, null = TRUE)
    f(TRUE)
  })
})

test_that("numbers, flags, strings and choices follow their rules", {
  rate <- function(dropout, ...) check_number(dropout, ...)
  flag <- function(causal, ...) check_flag(causal, ...)
  string <- function(name, ...) check_string(name, ...)
  choice <- function(layout = c("half", "interleaved")) {
    check_choice(layout, c("half", "interleaved"))
  }
  expect_silent(rate(0, min = 0, below = 1))
  expect_silent(flag(NULL, null = TRUE))
  expect_silent(string("a"))
  expect_equal(choice(), "half")
  expect_equal(choice("interleaved"), "interleaved")
  expect_snapshot(error = TRUE, {
    rate(1, min = 0, below = 1)
    rate(NaN)
    rate(-2, above = 0, null = TRUE)
    rate(list(1))
    flag("yes")
    flag(NA)
    flag(c(TRUE, FALSE))
    flag(1, null = TRUE)
    string(NA_character_)
    string(4, null = TRUE)
    choice("both")
  })
})

test_that("arrays have axes and no NA, but may hold NaN", {
  f <- function(x, ...) check_array(x, ...)
  expect_silent(f(array(1, c(2, 3, 5)), axes = 3))
  expect_silent(f(array(NaN, c(2, 3))))
  expect_silent(f(array(TRUE, c(2, 3)), axes = 2:3))
  expect_silent(f(NULL, null = TRUE))
  expect_snapshot(error = TRUE, {
    f(matrix(1, 2, 3), axes = 3, letters = "(B, T, D)")
    f(1:7, axes = c(2, 3))
    f(data.frame(a = 1))
    f(list(1, 2))
    f(letters)
    f(factor("a"))
    f(array(c(1, NA, 3, NA), c(1, 2, 2)))
    f(array(c(1L, NA), c(2, 1)), null = TRUE)
  })
})

test_that("what is in `...` has a known name", {
  f <- function(...) {
    check_dots(list(...), c("attention_mask", "name", "training"))
  }
  expect_silent(f(name = "a", training = TRUE))
  expect_silent(f())
  expect_snapshot(error = TRUE, {
    f(1)
    f(mask = 1)
    f(trainig = TRUE)
    f(foo = list(1, 2))
    f(name = "a", name = "b")
  })
})

test_that("a required argument names itself and the caller", {
  layer <- function(units) check_required(units, hint = "Say how many.")
  expect_snapshot(error = TRUE, layer())
  cnd <- tryCatch(layer(), error = identity)
  expect_s3_class(cnd, "kerasattention_error")
  expect_equal(cnd$arg, "units")
  expect_equal(cnd$call, quote(layer()))
})

test_that("classed numbers and objects of Python are no sizes", {
  skip_without_keras()
  f <- function(axes) check_whole_numbers(axes, null = TRUE)
  g <- function(x) check_array(x)
  np <- reticulate::import("numpy", convert = FALSE)
  expect_snapshot(error = TRUE, {
    f(table(c(1, 1, 2)))
    f(ts(1:3))
    f(reticulate::r_to_py(list(1L, 2L)))
    f(np)
    f(mean)
    g(np)
    g(np$zeros)
    g(reticulate::r_to_py("text"))
  })
  expect_silent(g(np$zeros(3L)))
})

test_that("choices are some of those that there are", {
  f <- function(projections) check_choices(projections, c("query", "key"))
  expect_silent(f(c("key", "query")))
  expect_snapshot(error = TRUE, {
    f(c("query", "quary"))
    f(character())
    f(mean)
    f(NULL)
  })
})
