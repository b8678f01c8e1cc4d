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

test_that("what Python made in another session is named as such", {
  skip_without_keras()
  file <- withr::local_tempfile()
  saved <- function(x) {
    saveRDS(x, file)
    readRDS(file)
  }
  x <- input(5L, 6L)
  layer <- layer_group_query_attention(NULL, 4, 2, 1)
  model <- keras()$Model(x, layer(x))
  old_model <- saved(model)
  old_layer <- saved(layer)
  old_tensor <- saved(x)
  expect_snapshot(error = TRUE, attention_scores(old_model, numbers(1, 5, 6)))
  expect_snapshot(error = TRUE, attention_scores(model, old_tensor))
  expect_snapshot(error = TRUE, load_projections(old_layer))
  expect_snapshot(error = TRUE, old_layer(x))
  expect_snapshot(
    error = TRUE,
    layer_multi_head_attention(old_tensor, 2, 8)
  )
})
