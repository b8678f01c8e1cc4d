test_that("flags, strings and choices follow their rules", {
  flag <- function(causal, ...) check_flag(causal, ...)
  string <- function(name, ...) check_string(name, ...)
  choice <- function(layout = c("half", "interleaved")) {
    check_choice(layout, c("half", "interleaved"))
  }
  expect_silent(flag(NULL, null = TRUE))
  expect_silent(string("a"))
  expect_equal(choice(), "half")
  expect_equal(choice("interleaved"), "interleaved")
  expect_snapshot(error = TRUE, {
    flag("yes")
    flag(NA)
    flag(c(TRUE, FALSE))
    flag(1, null = TRUE)
    string(NA_character_)
    string(4, null = TRUE)
    choice("both")
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
