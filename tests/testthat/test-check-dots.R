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

test_that("the hint knows the other arguments of the user's call", {
  f <- function(model, n, ..., seed = NULL) check_dots(list(...), "seed")
  expect_snapshot(error = TRUE, {
    f(modl = 1)
    f(y = 1)
    generate_tokens(mdl = 1, c(3, 1), 5)
    generate_tokens(tokns = c(3, 1), max_new_tokens = 5)
    attention_scores(modle = 1)
    load_projections(layr = 1)
    enable_lora(model = 1, rnk = 2)
    head_importance(mod = 1, inputs = 2)
  })
})
