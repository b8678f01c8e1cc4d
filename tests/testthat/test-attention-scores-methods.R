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
    new_attention_scores(list(map), layers, index, t(c("a", "cat", "sat", ".")))
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

# Two layers of the same sizes, and one of others.
small_scores <- function() {
  index <- function(heads, keys) {
    list(
      sample = 1:2,
      head = seq_len(heads),
      query = 1:3,
      key = seq_len(keys),
      self_attention = TRUE,
      labelled = FALSE
    )
  }
  maps <- list(
    numbers(2, 5, 3, 3, seed = 1),
    numbers(2, 5, 3, 3, seed = 2),
    numbers(2, 4, 3, 7)
  )
  layers <- data.frame(layer = c("one", "two", "other"))
  index <- list(index(5, 3), index(5, 3), index(4, 7))
  new_attention_scores(maps, layers, index, NULL)
}

test_that("`[[`, names() and as.list() go by layers", {
  scores <- small_scores()
  expect_identical(scores[["two"]], scores$maps[[2]])
  expect_identical(scores[[3]], scores$maps[[3]])
  expect_equal(names(scores), c("one", "two", "other"))
  expect_length(scores, 3)
  expect_equal(
    lapply(scores, dim),
    list(one = c(2, 5, 3, 3), two = c(2, 5, 3, 3), other = c(2, 4, 3, 7))
  )
  expect_snapshot(error = TRUE, {
    scores[["three"]]
    scores[[4]]
    scores[[1:2]]
  })
})

test_that("head() and tail() take layers", {
  scores <- small_scores()
  expect_equal(names(head(scores)), c("one", "two", "other"))
  expect_equal(names(head(scores, 2)), c("one", "two"))
  expect_equal(names(head(scores, -1)), c("one", "two"))
  expect_equal(names(tail(scores, 1)), "other")
  expect_s3_class(head(scores, 1), "attention_scores")
  expect_equal(nrow(head(as.data.frame(scores), 4)), 4)
})

test_that("as.array() has the layers as its first axis", {
  scores <- small_scores()
  values <- as.array(scores[1:2])
  expect_equal(dim(values), c(2, 2, 5, 3, 3))
  expect_equal(values["two", , , , ], scores$maps$two)
  expect_equal(dim(as.array(scores["other"])), c(1, 2, 4, 3, 7))
  expect_snapshot(error = TRUE, as.array(scores))
})
