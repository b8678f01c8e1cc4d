test_that("attention_scores() collects the maps of every layer", {
  model <- toy_model()
  x <- toy_input()
  scores <- attention_scores(model, x)
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

test_that("wrong arguments are refused", {
  model <- toy_model()
  x <- toy_input()
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
})

test_that("what the model does not have is refused, counted from one", {
  words <- c("a", "cat", "sat", "here", ".")
  model <- toy_model()
  expect_snapshot(error = TRUE, {
    attention_scores(model, toy_input(), layers = 3)
    attention_scores(model, toy_input(), heads = c(1, 4))
    attention_scores(model, toy_input(), layers = 2, heads = 7)
    attention_scores(model, toy_input(), queries = 6)
    attention_scores(model, toy_input(), queries = c(5, 6))
    attention_scores(model, toy_input(), queries = 1:100)
    attention_scores(model, toy_input(), tokens = words)
    attention_scores(model, toy_input(), tokens = list(words, words[1:4]))
    enable_lora(model, 2, layers = 3)
    enable_lora(model, 2, layers = "third")
    attention_scores(model, input(5L, 14L))
  })
})

test_that("each sample has its own words, queries of another sequence none", {
  skip_without_keras()
  target <- input(3L, 14L)
  source <- input(5L, 14L)
  output <- target |>
    layer_multi_head_attention(3, 4, name = "own") |>
    layer_multi_head_attention(3, 4, value = source, name = "cross")
  model <- keras()$Model(list(target, source), output)
  x <- list(numbers(2, 3, 14), numbers(2, 5, 14, seed = 2))
  words <- rbind(letters[1:5], LETTERS[1:5])
  scores <- attention_scores(model, x, tokens = words, heads = 1)
  frame <- as.data.frame(scores)
  own <- frame[frame$layer == "own", ]
  cross <- frame[frame$layer == "cross", ]
  expect_true(all(is.na(c(own$key_token, own$query_token))))
  expect_true(all(is.na(cross$query_token)))
  expect_equal(cross$key_token, words[cbind(cross$sample, cross$key)])
  expect_equal(
    as.data.frame(scores["cross", sample = 2])$key_token,
    rep(LETTERS[1:5], each = 3)
  )
  of_targets <- list(letters[1:3], LETTERS[1:3])
  scores <- attention_scores(model, x, tokens = of_targets, heads = 1)
  own <- as.data.frame(scores["own"])
  expect_equal(
    own$query_token,
    do.call(rbind, of_targets)[cbind(own$sample, own$query)]
  )
  expect_error(attention_rollout(scores["cross"]), "cross")
})
