test_that("plots show what they say", {
  skip_if_not_installed("ggplot2")
  words <- c("a", "cat", "sat", "here", ".")
  scores <- attention_scores(toy_model(), samples(1), tokens = words)
  heads <- ggplot2::autoplot(scores)
  expect_equal(nrow(heads$data), 3 * 25 + 6 * 25)
  mean <- ggplot2::autoplot(scores[2], type = "mean")
  expect_equal(
    mean$data$weight[mean$data$query == 2 & mean$data$key == 3],
    mean(scores$maps$second[1, , 2, 3]),
    tolerance = 1e-6
  )
  text <- ggplot2::autoplot(scores[1, 2], type = "text", query = 4)
  expect_equal(
    text$data$weight[order(text$data$key)],
    scores$maps$first[1, 2, 4, ]
  )
  expect_equal(text$data$token[order(text$data$key)], words)
  entropy <- ggplot2::autoplot(scores, type = "entropy")
  expect_equal(nrow(entropy$data), 9)
  for (picture in list(heads, mean, text, entropy)) {
    expect_no_error(ggplot2::ggplot_build(picture))
  }
})

test_that("wrong plots are refused", {
  scores <- attention_scores(toy_model(), toy_input())
  expect_snapshot(error = TRUE, {
    plot(scores, type = "text")
    plot(scores, type = "words")
    plot(scores, sample = 0)
  })
})

test_that("a plot has the words of its sample", {
  skip_if_not_installed("ggplot2")
  words <- rbind(letters[1:5], LETTERS[1:5])
  scores <- attention_scores(toy_model(), toy_input(), tokens = words)
  axis <- function(plot) {
    plot <- ggplot2::ggplot_build(plot)$layout$panel_scales_x[[1]]
    plot$get_labels()
  }
  expect_equal(axis(ggplot2::autoplot(scores[1])), letters[1:5])
  expect_equal(axis(ggplot2::autoplot(scores[1], sample = 2)), LETTERS[1:5])
  second <- scores[1, sample = 2]
  expect_equal(axis(ggplot2::autoplot(second, type = "mean")), LETTERS[1:5])
  text <- ggplot2::autoplot(scores[1, 2], "text", query = 3, sample = 2)
  expect_equal(text$labels$title, "What \"C\" (3) attends to")
  rollout <- ggplot2::autoplot(attention_rollout(scores), sample = 2)
  expect_equal(axis(rollout), LETTERS[1:5])
})
