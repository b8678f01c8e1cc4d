test_that("words are laid out in lines", {
  layout <- text_layout(c("aaaa", "bb", "cccc"), letters = 10)
  expect_equal(layout$line, c(1, 1, 2))
  expect_equal(layout$middle, c(2.75, 7.25, 2.75))
})
