test_that("flags of a call are TRUE, FALSE or NULL", {
  expect_silent(check(
    training = NULL,
    use_causal_mask = FALSE,
    return_attention_scores = TRUE
  ))
  expect_snapshot(error = TRUE, {
    check(training = "yes")
    check(use_causal_mask = NA)
    check(return_attention_scores = 1)
  })
})

test_that("a layer that is not called keeps the causal mask and refuses the rest", {
  f <- function(...) check_call(NULL, list(...), axes = NULL)
  expect_silent(f(use_causal_mask = TRUE, return_attention_scores = FALSE))
  expect_snapshot(error = TRUE, {
    f(attention_mask = matrix(TRUE, 3, 3))
    f(return_attention_scores = TRUE)
    f(training = FALSE)
    f(segment_ids = matrix(1, 2, 3))
  })
})
