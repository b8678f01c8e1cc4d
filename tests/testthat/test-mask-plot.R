test_that("a plot shows what is visible", {
  skip_if_not_installed("ggplot2")
  mask <- mask_causal() & (mask_window(8) | mask_sinks(2))
  picture <- ggplot2::autoplot(mask, 13)
  expect_equal(nrow(picture$data), 13 * 13)
  visible <- picture$data$visible[picture$data$query == 11] == "yes"
  expect_equal(visible, c(TRUE, TRUE, FALSE, FALSE, rep(TRUE, 8), FALSE))
  expect_equal(picture$labels$title, format(mask))
  expect_no_error(ggplot2::ggplot_build(picture))
})

test_that("wrong lengths are refused", {
  expect_snapshot(error = TRUE, {
    plot(mask_causal(), 0)
    plot(mask_causal(), length = 12)
  })
})
