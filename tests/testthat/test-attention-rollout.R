test_that("attention_rollout() is the product of the flows", {
  scores <- attention_scores(two_layers(), samples(2))
  rollout <- attention_rollout(scores)
  expect_equal(dim(rollout$rollout), c(2, 2, 5, 5))
  flow <- function(map) 0.5 * apply(map[2, , , ], 2:3, mean) + 0.5 * diag(5)
  expected <- flow(scores$maps$second) %*% flow(scores$maps$first)
  expect_equal(rollout$rollout[2, 2, , ], expected, tolerance = 1e-6)
  frame <- as.data.frame(rollout)
  one <- frame$layer == "second" &
    frame$sample == 2 &
    frame$query == 3 &
    frame$key == 4
  expect_equal(frame$weight[one], expected[3, 4], tolerance = 1e-6)
  expect_snapshot(rollout)
  expect_snapshot(error = TRUE, {
    attention_rollout(scores[,, 1:2])
  })
  expect_snapshot(error = TRUE, {
    attention_rollout(1)
    attention_rollout(structure(list(), class = "attention_scores"))
  })
})

test_that("the data frame of a rollout has the tokens of each sample", {
  words <- rbind(letters[1:5], LETTERS[1:5])
  scores <- attention_scores(two_layers(), samples(2), tokens = words)
  frame <- as.data.frame(attention_rollout(scores))
  expect_equal(frame$query_token, words[cbind(frame$sample, frame$query)])
  expect_equal(frame$key_token, words[cbind(frame$sample, frame$key)])
  second <- as.data.frame(attention_rollout(scores[, sample = 2]))
  expect_equal(second$key_token, LETTERS[second$key])
})
