toy_model <- function() {
  skip_without_keras()
  keras <- reticulate::import("keras")
  keras$utils$set_random_seed(3L)
  input <- keras$Input(reticulate::tuple(5L, 14L))
  output <- input |>
    layer_multi_head_attention(3, 4, use_causal_mask = TRUE, name = "first") |>
    layer_group_query_attention(4, 6, 2, name = "second")
  model <- keras$Model(input, output)
  model$compile(loss = "mse")
  model
}

toy_input <- function() {
  set.seed(2)
  array(rnorm(2 * 5 * 14), c(2, 5, 14))
}

words <- c("a", "cat", "sat", "here", ".")

test_that("attention_scores() collects the maps of every layer", {
  model <- toy_model()
  x <- toy_input()
  scores <- attention_scores(model, x, tokens = words)
  expect_s3_class(scores, "attention_scores")
  expect_equal(
    lapply(scores$maps, dim),
    list(first = c(2, 3, 5, 5), second = c(2, 6, 5, 5))
  )
  expect_equal(
    apply(scores$maps$second, 1:3, sum),
    array(1, c(2, 6, 5)),
    tolerance = 1e-6
  )
  above <- outer(1:5, 1:5, `<`)
  expect_true(all(scores$maps$first[1, 2, , ][above] == 0))

  layer <- model$get_layer("first")
  itself <- layer(x, return_attention_scores = TRUE, use_causal_mask = TRUE)
  expect_equal(
    scores$maps$first,
    as.array(itself$attention_scores),
    tolerance = 1e-5
  )
})

test_that("layers, heads and queries are counted from one", {
  model <- toy_model()
  x <- toy_input()
  all <- attention_scores(model, x)
  some <- attention_scores(
    model,
    x,
    layers = 2,
    heads = c(6, 1),
    queries = c(5, 2)
  )
  expect_equal(names(some$maps), "second")
  expect_equal(
    some$maps[[1]],
    all$maps$second[, c(6, 1), c(5, 2), ],
    tolerance = 1e-6
  )
  by_name <- attention_scores(model, x, layers = "first")
  expect_equal(by_name$maps$first, all$maps$first, tolerance = 1e-6)
})

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

test_that("wrong arguments are refused", {
  model <- toy_model()
  x <- toy_input()
  scores <- attention_scores(model, x)
  expect_snapshot(error = TRUE, {
    attention_scores(1, x)
  })
  expect_snapshot(error = TRUE, {
    attention_scores(model, data.frame(a = 1))
  })
  expect_snapshot(error = TRUE, {
    attention_scores(model, x, layers = 0)
  })
  expect_snapshot(error = TRUE, {
    attention_scores(model, x, layers = "third")
  })
  expect_snapshot(error = TRUE, {
    attention_scores(model, x, head = 1)
  })
  expect_snapshot(error = TRUE, {
    scores[3]
  })
  expect_snapshot(error = TRUE, {
    scores[1, 4]
  })
  expect_snapshot(error = TRUE, {
    plot(scores, type = "text")
  })
  expect_snapshot(error = TRUE, {
    plot(scores, type = "words")
  })
})

test_that("plots show what they say", {
  skip_if_not_installed("ggplot2")
  scores <- attention_scores(toy_model(), toy_input(), tokens = words)
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

test_that("words are laid out in lines", {
  layout <- text_layout(c("aaaa", "bb", "cccc"), letters = 10)
  expect_equal(layout$line, c(1, 1, 2))
  expect_equal(layout$middle, c(2.75, 7.25, 2.75))
})

test_that("queries and labels that the model does not have are refused", {
  model <- toy_model()
  expect_snapshot(error = TRUE, {
    attention_scores(model, toy_input(), queries = 6)
    attention_scores(model, toy_input(), queries = c(5, 6))
    attention_scores(model, toy_input(), queries = 1:100)
    attention_scores(model, toy_input(), tokens = words[1:4])
    attention_scores(model, input(5L, 14L))
    layer_multi_head_attention(
      toy_input(),
      2,
      4,
      value = structure(1, class = "python.builtin.object")
    )
  })
})
