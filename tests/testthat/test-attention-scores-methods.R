test_that("`[` cuts layers, heads, queries, keys and samples and keeps their numbers", {
  scores <- attention_scores(toy_model(), toy_input())
  part <- scores["second", 2:3, 4, -1, sample = 2]
  expect_equal(dim(part$maps$second), c(1, 2, 1, 4))
  expect_equal(
    part$maps$second[1, , 1, ],
    scores$maps$second[2, 2:3, 4, 2:5],
    tolerance = 1e-6
  )
  frame <- as.data.frame(part)
  expect_equal(unique(frame$head), 2:3)
  expect_equal(unique(frame$query), 4)
  expect_equal(unique(frame$key), 2:5)
  expect_equal(unique(frame$sample), 2)
  expect_equal(
    frame$weight[frame$head == 3 & frame$key == 5],
    scores$maps$second[2, 3, 4, 5]
  )
})

test_that("summary() gives entropy and distance that can be worked out by hand", {
  map <- array(0, c(1, 1, 2, 4))
  map[1, 1, 1, ] <- c(0.5, 0.5, 0, 0)
  map[1, 1, 2, ] <- c(0.25, 0.25, 0.25, 0.25)
  index <- list(list(sample = 1L, head = 1L, query = 1:2, key = 1:4))
  scores <- new_attention_scores(
    list(map),
    data.frame(layer = "one"),
    index,
    NULL
  )
  # Entropies of 1 and 2 bits; distances of 0.5 and (1 + 0 + 1 + 2) / 4.
  expect_equal(summary(scores)$entropy, 1.5)
  expect_equal(summary(scores)$distance, 0.75)
})

test_that("attention_scores() prints itself", {
  map <- array(1 / 4, c(1, 2, 3, 4))
  index <- list(list(sample = 1L, head = 1:2, query = 1:3, key = 1:4))
  layers <- data.frame(layer = "attention")
  expect_snapshot({
    new_attention_scores(list(map), layers, index, NULL)
    new_attention_scores(list(map), layers, index, c("a", "cat", "sat", "."))
  })
})

test_that("layers and heads that are not there are refused", {
  map <- array(1 / 4, c(1, 2, 3, 4))
  index <- list(list(sample = 1L, head = 1:2, query = 1:3, key = 1:4))
  layers <- data.frame(layer = "attention")
  scores <- new_attention_scores(list(map), layers, index, NULL)
  expect_snapshot(error = TRUE, {
    scores[2]
    scores["second"]
    scores[1, 3]
  })
})
