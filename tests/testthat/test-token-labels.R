test_that("each sample has its own labels", {
  sizes <- list(c(2, 3, 5, 5), c(2, 3, 4, 7))
  words <- rbind(letters[1:5], letters[6:10])
  f <- function(tokens, ...) {
    check_tokens(tokens, ...)
    as_labels(tokens, sizes, ...)
  }
  expect_null(f(NULL))
  expect_equal(f(words), words)
  expect_equal(f(list(a = words[1, ], b = words[2, ])), words)
  expect_equal(as_labels(letters[1:3], list(c(1, 2, 3, 3))), t(letters[1:3]))
  expect_snapshot(error = TRUE, {
    f(letters[1:5])
    f(words[c(1, 2, 1), ])
    f(list(letters[1:5]))
    f(list(letters[1:5], letters[1:4]))
    f(list(letters[1:4], letters[1:5]))
    f(list(letters[1:5], letters[1:7]))
    f(list("a", 1))
    f(list())
    f(c("a", NA))
    f(1:3)
    f(factor(letters[1:5]))
  })
})

test_that("labels are those of keys, and of queries in self-attention", {
  labels <- rbind(letters[1:3], letters[4:6])
  index <- list(self_attention = TRUE, labelled = TRUE)
  at <- function(axis) labels_at(labels, index, axis, c(1, 2, 2), c(3, 1, 2))
  expect_equal(at("key"), c("c", "d", "e"))
  expect_equal(at("query"), c("c", "d", "e"))
  index$self_attention <- FALSE
  expect_equal(at("key"), c("c", "d", "e"))
  expect_equal(at("query"), rep(NA_character_, 3))
  index$labelled <- FALSE
  expect_equal(at("key"), rep(NA_character_, 3))
})
