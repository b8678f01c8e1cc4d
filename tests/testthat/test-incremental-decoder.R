test_that("steps give the logits of the full pass", {
  model <- token_model()
  row <- c(3, 1, 4, 1, 5, 9, 2, 6)
  expected <- full_pass(model, row)
  decoder <- incremental_decoder(model, batch_size = 1, max_length = 9)
  expect_close(decoder$prefill(row[1:3]), expected[3, , drop = FALSE], 1e-4)
  expect_close(decoder$step(row[4]), expected[4, , drop = FALSE], 1e-4)
  # Several tokens of one row, as a vector or a matrix.
  expect_close(decoder$step(row[5:6]), expected[6, , drop = FALSE], 1e-4)
  last <- decoder$step(matrix(row[7:8], 1))
  expect_close(last, expected[8, , drop = FALSE], 1e-4)
  expect_equal(decoder$length(), 8)
})

test_that("rows of different length are decoded as each alone", {
  model <- token_model()
  decoder <- incremental_decoder(model, batch_size = 2, max_length = 9)
  logits <- decoder$prefill(list(c(3, 1, 4), c(9, 2)))
  expect_equal(dim(logits), c(2, 13))
  expect_close(logits[1, ], full_pass(model, c(3, 1, 4))[3, ], 1e-4)
  expect_close(logits[2, ], full_pass(model, c(9, 2))[2, ], 1e-4)
  logits <- decoder$step(c(5, 6))
  expect_close(logits[1, ], full_pass(model, c(3, 1, 4, 5))[4, ], 1e-4)
  expect_close(logits[2, ], full_pass(model, c(9, 2, 6))[3, ], 1e-4)
})

test_that("the caches are of the size that the help promises", {
  # 2 x B x max_length x K x H numbers of 4 bytes
  decoder <- incremental_decoder(token_model(), 3, max_length = 11)
  expect_equal(decoder$cache_bytes(), 2 * 3 * 11 * 2 * 4 * 4)
  decoder <- incremental_decoder(token_model(window = 5), 3, max_length = 11)
  expect_equal(decoder$cache_bytes(), 2 * 3 * 5 * 2 * 4 * 4)
})

test_that("a decoder prints itself and starts again after reset()", {
  model <- token_model()
  decoder <- incremental_decoder(model, 1, 9)
  expect_snapshot(decoder)
  first <- decoder$prefill(c(3, 1, 4))
  expect_snapshot(decoder)
  expect_null(decoder$reset())
  expect_equal(decoder$length(), 0)
  expect_equal(decoder$prefill(c(3, 1, 4)), first)
})

test_that("rows may outgrow caches that roll", {
  model <- token_model(window = 3)
  row <- c(3, 1, 4, 1, 5, 9, 2, 6)
  decoder <- incremental_decoder(model, 1, max_length = 4)
  decoder$prefill(row[1:2])
  for (token in row[3:8]) {
    logits <- decoder$step(token)
  }
  expect_close(logits, full_pass(model, row)[8, , drop = FALSE], 1e-4)
})

test_that("wrong arguments and a full context are told", {
  model <- token_model()
  decoder <- incremental_decoder(model, 2, 4)
  expect_snapshot(error = TRUE, {
    incremental_decoder(model)
    incremental_decoder(1, 1, 1)
    incremental_decoder(model, 0, 1)
    incremental_decoder(model, 1, 2.5)
    incremental_decoder(model, 2^31 - 1, 4)
    incremental_decoder(model, 1, 2^31 - 1)
    decoder$step(c(1, 2))
    decoder$prefill()
    decoder$step(list(1, 2))
    decoder$prefill("text")
    decoder$prefill(c(1, 2, 3))
    decoder$prefill(matrix(1, 2, 5))
  })
  decoder$prefill(matrix(1, 2, 4))
  expect_snapshot(error = TRUE, {
    decoder$step(c(1, 2))
    decoder$prefill(matrix(1, 2, 4))
  })
})

test_that("a prompt with segments and spans is continued as its last segment", {
  skip_without_keras()
  keras()$utils$set_random_seed(5L)
  tokens <- input(NULL, dtype = "int32")
  segments <- keras()$Input(list(NULL), dtype = "int32", name = "segments")
  spans <- keras()$Input(list(NULL), dtype = "int32", name = "spans")
  hidden <- keras()$layers$Embedding(13L, 14L)(tokens) |>
    layer_group_query_attention(
      head_dim = 4,
      num_query_heads = 6,
      num_key_value_heads = 2,
      use_causal_mask = TRUE,
      segment_ids = segments,
      bidirectional = spans
    )
  logits <- keras()$layers$Dense(13L)(hidden)
  model <- keras()$Model(list(segments, spans, tokens), logits)
  prompt <- c(3, 1, 4, 1, 5)
  given <- list(c(1, 1, 2, 2, 2), c(0, 0, 7, 7, 0))
  later <- list(c(given[[1]], 2), c(given[[2]], 0), c(prompt, 9))
  whole <- lapply(later, \(x) matrix(as.integer(x), 1))
  expected <- as.array(model(whole))[1, , ]

  decoder <- incremental_decoder(model, batch_size = 1, max_length = 8)
  expect_close(decoder$prefill(prompt, given)[1, ], expected[5, ])
  expect_close(decoder$step(9)[1, ], expected[6, ])
  first <- generate_tokens(model, prompt, 1, inputs = given)
  expect_equal(first[6], which.max(expected[5, ]) - 1)
  decoder$reset()
  expect_snapshot(error = TRUE, {
    decoder$prefill(prompt, list(c(1, 1, 2, 2, 0), given[[2]]))
    decoder$prefill(prompt, list(c(1, 1, 2), given[[2]]))
  })
})

test_that("the positions of a prompt and of each step are given", {
  skip_without_keras()
  keras()$utils$set_random_seed(5L)
  tokens <- input(NULL, dtype = "int32")
  times <- keras()$Input(list(NULL), dtype = "float32", name = "times")
  hidden <- keras()$layers$Embedding(13L, 14L)(tokens) |>
    layer_multi_head_attention(
      num_heads = 2,
      key_dim = 4,
      position = position_alibi(),
      use_causal_mask = TRUE,
      positions = times
    )
  logits <- keras()$layers$Dense(13L)(hidden)
  model <- keras()$Model(list(times, tokens), logits)
  at <- rbind(c(0, 0.5, 3, 3.5, 9), c(1, 4, 4.25, 5, 7))
  rows <- rbind(c(3L, 1L, 4L, 1L, 5L), c(9L, 2L, 6L, 5L, 3L))
  expected <- as.array(model(list(at, rows)))

  decoder <- incremental_decoder(model, batch_size = 2, max_length = 8)
  expect_close(decoder$prefill(rows[, 1:2], at[, 1:2]), expected[, 2, ])
  expect_close(decoder$step(rows[, 3], at[, 3]), expected[, 3, ])
  expect_close(decoder$step(rows[, 4:5], list(at[, 4:5])), expected[, 5, ])
  expect_snapshot(error = TRUE, {
    decoder$step(c(1, 1))
    decoder$step(c(1, 1), c(3, 12))
    generate_tokens(model, rows, 2, inputs = at)
    generate_tokens(model, rows, 2, inputs = at, position_step = 0)
    generate_tokens(model, rows, 2, inputs = at, position_step = "1")
  })
  made <- generate_tokens(model, rows, 2, inputs = at, position_step = 0.5)
  later <- cbind(at, c(9.5, 7.5))
  expected <- as.array(model(list(later, made[, 1:6])))
  expect_equal(made[, 6:7], apply(expected[, 5:6, ], c(1, 2), which.max) - 1L)
})

test_that("positions of several axes go on behind the largest", {
  skip_without_keras()
  keras()$utils$set_random_seed(5L)
  tokens <- input(NULL, dtype = "int32")
  places <- keras()$Input(list(NULL, 2L), dtype = "int32", name = "places")
  hidden <- keras()$layers$Embedding(13L, 14L)(tokens) |>
    layer_multi_head_attention(
      num_heads = 2,
      key_dim = 4,
      position = position_rotary(sections = c(1, 1)),
      use_causal_mask = TRUE,
      positions = places
    )
  model <- keras()$Model(
    list(places, tokens),
    keras()$layers$Dense(13L)(hidden)
  )
  row <- matrix(c(3L, 1L, 4L), 1)
  at <- array(c(0, 5, 1, 2, 0, 3), c(1, 3, 2))
  made <- generate_tokens(model, row, 2, inputs = at)
  later <- array(c(0L, 5L, 1L, 6L, 2L, 0L, 3L, 6L), c(1, 4, 2))
  expected <- as.array(model(list(later, made[, 1:4, drop = FALSE])))[1, , ]
  expect_equal(made[1, 4:5], apply(expected[3:4, ], 1, which.max) - 1L)

  decoder <- incremental_decoder(model, batch_size = 1, max_length = 8)
  decoder$prefill(row, at)
  expect_close(decoder$step(made[1, 4])[1, ], expected[4, ])
  decoder$reset()
  decoder$prefill(row, at)
  expect_close(decoder$step(made[1, 4], matrix(6, 1, 2))[1, ], expected[4, ])
})
