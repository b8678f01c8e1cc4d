test_that("attention_scores() collects the maps of every layer", {
  words <- c("a", "cat", "sat", "here", ".")
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

test_that("queries and labels that the model does not have are refused", {
  words <- c("a", "cat", "sat", "here", ".")
  model <- toy_model()
  expect_snapshot(error = TRUE, {
    attention_scores(model, toy_input(), queries = 6)
    attention_scores(model, toy_input(), queries = c(5, 6))
    attention_scores(model, toy_input(), queries = 1:100)
    attention_scores(model, toy_input(), tokens = words[1:4])
    attention_scores(model, input(5L, 14L))
  })
})
