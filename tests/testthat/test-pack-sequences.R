test_that("each sequence goes into the first row with room", {
  skip_without_keras()
  packed <- pack_sequences(list(11:13, 21:24, 31:32, 41, 51:55), length = 5)
  expect_equal(
    packed$tokens,
    rbind(
      c(11, 12, 13, 31, 32),
      c(21, 22, 23, 24, 41),
      c(51, 52, 53, 54, 55)
    )
  )
  expect_equal(
    packed$segment_ids,
    rbind(c(1, 1, 1, 3, 3), c(2, 2, 2, 2, 4), c(5, 5, 5, 5, 5))
  )
  expect_equal(
    packed$positions,
    rbind(c(0, 1, 2, 0, 1), c(0, 1, 2, 3, 0), 0:4)
  )
  expect_type(packed$tokens, "integer")
})

test_that("every sequence comes back, and the rest is padding", {
  skip_without_keras()
  sizes <- withr::with_seed(3, sample(1:11, 23, replace = TRUE))
  sequences <- Map(\(n, i) 100 * i + seq_len(n), sizes, seq_along(sizes))
  packed <- pack_sequences(sequences, 11L)
  segments <- t(packed$segment_ids)
  for (i in seq_along(sequences)) {
    expect_equal(t(packed$tokens)[segments == i], sequences[[i]])
    expect_equal(t(packed$positions)[segments == i], seq_len(sizes[[i]]) - 1)
  }
  expect_equal(
    sum(packed$segment_ids == 0),
    11 * nrow(packed$tokens) - sum(sizes)
  )
  expect_true(all(packed$tokens[packed$segment_ids == 0] == 0))
  # Any two rows together hold more than one row could.
  used <- rowSums(packed$segment_ids > 0)
  expect_true(all(used[-1] + used[-length(used)] > 11))
})

test_that("a packed batch is attended as its sequences alone", {
  skip_without_keras()
  sequences <- list(1:3, 4:5, 6:11)
  packed <- pack_sequences(sequences, 6)
  table <- numbers(11, 8)
  embed <- function(tokens) {
    tokens <- matrix(tokens, ncol = 6)
    array(rbind(0, table)[tokens + 1, ], c(dim(tokens), 8))
  }
  layer <- layer_group_query_attention(
    head_dim = 4,
    num_query_heads = 4,
    num_key_value_heads = 2,
    position = position_rotary()
  )
  together <- as.array(layer(
    embed(packed$tokens),
    segment_ids = packed$segment_ids,
    positions = packed$positions,
    use_causal_mask = TRUE
  ))
  for (i in seq_along(sequences)) {
    x <- array(table[sequences[[i]], ], c(1, length(sequences[[i]]), 8))
    alone <- as.array(layer(x, use_causal_mask = TRUE))
    where <- which(packed$segment_ids == i, arr.ind = TRUE)
    for (t in seq_len(nrow(where))) {
      expect_equal(
        together[where[t, 1], where[t, 2], ],
        alone[1, t, ],
        tolerance = 1e-5
      )
    }
  }
})

test_that("wrong arguments are told apart before Python starts", {
  expect_snapshot(error = TRUE, {
    pack_sequences()
    pack_sequences(list(1:3))
    pack_sequences(1:3, 4)
    pack_sequences(list(), 4)
    pack_sequences(list(1:3), 0)
    pack_sequences(list(1:3, "a"), 4)
    pack_sequences(list(1:3, integer()), 4)
    pack_sequences(list(1:3, c(1, NA)), 4)
    pack_sequences(list(1:3, c(1, -1)), 4)
    pack_sequences(list(1:3, 1.5), 4)
    pack_sequences(list(1:3, 1:9), 4)
    pack_sequences(list(1:3, 2^31), 4)
    pack_sequences(list(1:3, matrix(1:4, 2)), 4)
    pack_sequences(list(1:3), 2^31 - 1)
  })
})
