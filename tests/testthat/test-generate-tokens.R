test_that("a vector is continued by its likeliest tokens", {
  model <- token_model()
  made <- generate_tokens(model, c(3, 1, 4), max_new_tokens = 6)
  expect_type(made, "integer")
  expect_null(dim(made))
  expect_equal(made, continue(model, c(3, 1, 4), 6))
  expect_identical(generate_tokens(model, c(3L, 1L, 4L), 6L), made)
})

test_that("a matrix gives a matrix, a list a list, each row as if alone", {
  model <- token_model()
  prompts <- rbind(c(3, 1, 4), c(11, 0, 7))
  made <- generate_tokens(model, prompts, 5)
  expect_equal(dim(made), c(2, 8))
  expect_type(made, "integer")
  for (i in 1:2) {
    expect_equal(made[i, ], continue(model, prompts[i, ], 5))
  }
  ragged <- list(c(3, 1, 4), 9)
  made <- generate_tokens(model, ragged, 5)
  expect_type(made, "list")
  for (i in 1:2) {
    expect_equal(made[[i]], continue(model, ragged[[i]], 5))
  }
})

test_that("a stop token ends a row, which is then filled up with it", {
  model <- token_model()
  free <- generate_tokens(model, rbind(c(3, 1, 4), c(11, 0, 7)), 8)
  stop <- free[1, 6]
  made <- generate_tokens(model, free[, 1:3], 8, stop_token = stop)
  for (i in 1:2) {
    new <- free[i, 4:11]
    ends <- match(stop, new)
    kept <- if (is.na(ends)) new else new[seq_len(ends)]
    found <- made[i, -(1:3)]
    same <- seq_len(min(length(kept), length(found)))
    expect_equal(found[same], kept[same])
    expect_true(all(found[-same] == stop))
  }
  # In a list each row ends with its stop token.
  listed <- generate_tokens(model, list(free[1, 1:3], 9), 8, stop_token = stop)
  expect_equal(match(stop, listed[[1]][-(1:3)]), length(listed[[1]]) - 3)
})

test_that("seed, temperature, top_k and top_p reach Python", {
  model <- token_model()
  python <- python_module()
  draw <- function(seed) {
    generate_tokens(model, c(3, 1), 9, 1.5, top_k = 5, top_p = 0.9, seed = seed)
  }
  expect_identical(draw(1), draw(1))
  expect_false(identical(draw(1), draw(2)))
  expected <- python$generate(
    model,
    as_ids(c(3, 1)),
    9L,
    temperature = 1.5,
    top_k = 5L,
    top_p = 0.9,
    seed = 2L
  )
  expect_equal(draw(2), as.integer(expected))
  # The likeliest token alone is left.
  expect_identical(
    generate_tokens(model, c(3, 1), 9, temperature = 2, top_k = 1),
    generate_tokens(model, c(3, 1), 9)
  )
})

test_that("several continuations of a prompt follow each other", {
  model <- token_model()
  made <- generate_tokens(
    model,
    c(3, 1),
    6,
    temperature = 2,
    seed = 1,
    num_return_sequences = 3
  )
  expect_equal(dim(made), c(3, 8))
  expect_equal(made[, 1:2], matrix(c(3L, 1L), 3, 2, byrow = TRUE))
  expect_equal(nrow(unique(made)), 3)
})

test_that("a callback in R sees the tokens and may end the run", {
  model <- token_model()
  whole <- generate_tokens(model, rbind(c(3, 1), c(0, 9)), 6)
  seen <- list()
  made <- generate_tokens(
    model,
    rbind(c(3, 1), c(0, 9)),
    6,
    callback = function(tokens) {
      seen[[length(seen) + 1]] <<- as.integer(tokens)
      length(seen) < 4
    }
  )
  expect_equal(do.call(cbind, seen), whole[, 3:6])
  expect_equal(made, whole[, 1:6])
  # Whatever else it returns lets the run go on.
  seen <- list()
  generate_tokens(model, c(3, 1), 3, callback = function(tokens) NULL)
  expect_error(
    generate_tokens(model, c(3, 1), 3, callback = function(tokens) {
      stop("mine")
    }),
    "mine",
    class = "kerasattention_error"
  )
})

test_that("wrong arguments are told apart", {
  model <- token_model()
  expect_snapshot(error = TRUE, {
    generate_tokens(model)
    generate_tokens("model", 1, 1)
    generate_tokens(model, "text", 1)
    generate_tokens(model, 1, 0)
    generate_tokens(model, 1, 2.5)
    generate_tokens(model, 1, 1, temperature = -1)
    generate_tokens(model, 1, 1, top_k = 0)
    generate_tokens(model, 1, 1, top_p = 0)
    generate_tokens(model, 1, 1, top_p = 1.5)
    generate_tokens(model, 1, 1, stop_token = -1)
    generate_tokens(model, 1, 1, seed = 1.5)
    generate_tokens(model, 1, 1, num_return_sequences = 0)
    generate_tokens(model, 1, 1, callback = "print")
    generate_tokens(model, 1, 1, progress = NA)
    generate_tokens(model, 1, 1, num_return_sequence = 2)
  })
})

test_that("a model that cannot be decoded is refused by the layer's name", {
  skip_without_keras()
  x <- input(NULL, 7L)
  pooled <- layer_multi_head_attention(x, 2, 3, use_causal_mask = TRUE) |>
    (keras()$layers$GlobalAveragePooling1D(name = "pool"))()
  seeing <- layer_multi_head_attention(x, 2, 3, name = "sees_ahead")
  expect_snapshot(error = TRUE, {
    incremental_decoder(keras()$Model(x, pooled), 1, 8)
    incremental_decoder(keras()$Model(x, seeing), 1, 8)
  })
})

test_that("sizes beyond memory are refused at once", {
  model <- token_model()
  expect_snapshot(error = TRUE, {
    generate_tokens(model, 1, 2, stop_token = 2^31)
    generate_tokens(model, 1, 2, stop_token = stdin())
    generate_tokens(model, 1, 2^31 - 1)
    generate_tokens(model, 1, 2, num_return_sequences = 2^31 - 1)
    generate_tokens(model, 1, 2, inputs = function(x) x)
    generate_tokens(model, 1, 2, inputs = list())
  })
})

test_that("an error in the callback is ours, with its message", {
  model <- token_model()
  f <- function() {
    generate_tokens(model, 1, 2, callback = function(ids) stop("no {more}"))
  }
  expect_error(f(), "no {more}", fixed = TRUE, class = "kerasattention_error")
})

test_that("set.seed() governs what is drawn without a seed", {
  model <- token_model()
  draw <- function() generate_tokens(model, c(3, 1), 9, temperature = 2)
  withr::local_seed(1)
  first <- draw()
  second <- draw()
  set.seed(1)
  expect_identical(draw(), first)
  expect_identical(draw(), second)
  expect_false(identical(first, second))
  # Without sampling and with a seed R's random numbers are not used.
  set.seed(1)
  expected <- stats::runif(1)
  set.seed(1)
  generate_tokens(model, c(3, 1), 2)
  generate_tokens(model, c(3, 1), 2, temperature = 1, seed = 5)
  expect_identical(stats::runif(1), expected)
})

test_that("options of sampling at temperature 0 are a warning", {
  model <- token_model()
  expect_snapshot({
    made <- generate_tokens(model, c(3, 1), 2, top_k = 5)
    made <- generate_tokens(model, c(3, 1), 2, top_p = 0.9)
  })
  expect_warning(
    generate_tokens(model, c(3, 1), 2, top_k = 5),
    class = "kerasattention_warning"
  )
})

test_that("a vector in `inputs` is one row", {
  skip_without_keras()
  expect_equal(shape_of(as_other_inputs(1:3)), c(1, 3))
  keras()$utils$set_random_seed(5L)
  source <- input(4L, dtype = "int32")
  tokens <- input(NULL, dtype = "int32")
  memory <- keras()$layers$Embedding(13L, 14L)(source)
  hidden <- keras()$layers$Embedding(13L, 14L)(tokens) |>
    layer_multi_head_attention(3, 4, use_causal_mask = TRUE) |>
    layer_multi_head_attention(3, 4, value = memory)
  logits <- keras()$layers$Dense(13L)(hidden)
  model <- keras()$Model(list(source, tokens), logits)
  ids <- c(5L, 2L, 11L, 7L)
  as_matrix <- generate_tokens(model, c(3, 1), 4, inputs = matrix(ids, 1))
  expect_equal(generate_tokens(model, c(3, 1), 4, inputs = ids), as_matrix)
  expect_equal(
    generate_tokens(model, c(3, 1), 4, inputs = list(ids)),
    as_matrix
  )
  decoder <- incremental_decoder(model, 1, 8)
  expect_equal(which.max(decoder$prefill(c(3, 1), ids)) - 1, as_matrix[[3]])
})
