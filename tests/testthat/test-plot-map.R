test_that("labels of positions are whole numbers", {
  expect_equal(whole_breaks(c(0.5, 3.5)), 1:3)
  expect_true(all(whole_breaks(c(0.5, 100.5)) %% 1 == 0))
})

test_that("up to 25 tokens are labels, of more an even part", {
  skip_if_not_installed("ggplot2")
  labels <- function(count) {
    tokens <- paste0("t", seq_len(count))
    scale <- token_scale(ggplot2::scale_x_continuous, seq_len(count), tokens)
    scale$labels
  }
  expect_equal(labels(3), c("t1", "t2", "t3"))
  expect_length(labels(25), 25)
  expect_equal(labels(26), paste0("t", seq(1, 26, by = 2)))
  expect_equal(labels(100), paste0("t", seq(1, 100, by = 4)))
})

test_that("draw() draws and gives the plot back", {
  skip_if_not_installed("ggplot2")
  withr::local_pdf(NULL)
  plot <- ggplot2::ggplot()
  expect_identical(withVisible(draw(plot)), list(value = plot, visible = FALSE))
})
