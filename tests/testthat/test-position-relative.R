test_that("one relative position is one table, two are two", {
  skip_without_keras()
  weights <- function(first, second) {
    x <- input(5L, 16L)
    y <- x |>
      layer_multi_head_attention(
        num_heads = 2,
        key_dim = 4,
        position = first
      ) |>
      layer_multi_head_attention(num_heads = 2, key_dim = 4, position = second)
    length(keras()$Model(x, y)$weights)
  }
  shared <- position_relative()
  expect_equal(weights(shared, shared), 17)
  expect_equal(weights(position_relative(), position_relative()), 18)
})

test_that("wrong arguments are told apart", {
  expect_snapshot(error = TRUE, {
    position_relative(31)
    position_relative(2)
    position_relative(32, 16)
    position_relative(32, 128.5)
  })
})

test_that("several axes have a table of offsets, and no buckets", {
  expect_snapshot({
    position_relative(max_distance = 6, axes = 2)
    position_relative(max_distance = c(2, 4), axes = 2)
    position_relative(max_distance = 13, axes = 2, class_token = TRUE)
  })
  expect_snapshot(error = TRUE, {
    position_relative(axes = 0)
    position_relative(32, axes = 2)
    position_relative(max_distance = -1, axes = 2)
    position_relative(max_distance = c(1, 2, 3), axes = 2)
    position_relative(max_distance = 2000, axes = 2)
    position_relative(max_distance = c(20, 30))
    position_relative(class_token = TRUE)
    position_relative(max_distance = 2, axes = 2, class_token = NA)
  })
})

test_that("the bias of a window is that of Swin's table", {
  skip_without_keras()
  windows <- numbers(2, 2, 3, 5)
  made <- layer_multi_head_attention(
    num_heads = 2,
    key_dim = 4,
    position = position_relative(max_distance = c(1, 2), axes = 2)
  )
  made(windows)
  table <- numbers(15, 2)
  made$position$table$assign(table)
  # Rows vary slowest, and so do the tokens of a window.
  at <- cbind(row = rep(0:1, each = 3), column = rep(0:2, 2))
  bias <- array(0, c(1, 2, 6, 6))
  for (q in 1:6) {
    for (k in 1:6) {
      offset <- at[q, ] - at[k, ]
      bias[1, , q, k] <- table[(offset[[1]] + 1) * 5 + offset[[2]] + 2 + 1, ]
    }
  }
  flat <- aperm(windows, c(1, 3, 2, 4))
  flat <- array(flat, c(2, 6, 5))
  plain <- layer_multi_head_attention(num_heads = 2, key_dim = 4)
  plain(flat)
  plain$set_weights(made$get_weights()[-1])
  expected <- as.array(plain(flat, attention_bias = bias))
  positions <- array(rep(at, each = 2), c(2, 6, 2))
  rows <- layer_multi_head_attention(
    num_heads = 2,
    key_dim = 4,
    position = made$position
  )
  rows(flat, positions = positions)
  rows$set_weights(made$get_weights())
  expect_close(rows(flat, positions = positions), expected)
  found <- aperm(as.array(made(windows)), c(1, 3, 2, 4))
  expect_close(array(found, c(2, 6, 5)), expected)
})

test_that("a class token has the last rows of the table", {
  skip_without_keras()
  x <- numbers(1, 5, 6)
  made <- layer_multi_head_attention(
    num_heads = 1,
    key_dim = 6,
    position = position_relative(
      max_distance = 1,
      axes = 2,
      class_token = TRUE
    )
  )
  at <- rbind(c(9, 9), c(0, 0), c(0, 1), c(1, 0), c(1, 1))
  positions <- array(at, c(1, 5, 2))
  made(x, positions = positions)
  table <- numbers(12, 1)
  made$position$table$assign(table)
  bias <- matrix(0, 5, 5)
  for (q in 2:5) {
    for (k in 2:5) {
      offset <- at[q, ] - at[k, ]
      bias[q, k] <- table[(offset[[1]] + 1) * 3 + offset[[2]] + 1 + 1, 1]
    }
  }
  bias[1, -1] <- table[10, 1]
  bias[-1, 1] <- table[11, 1]
  bias[1, 1] <- table[12, 1]
  plain <- layer_multi_head_attention(num_heads = 1, key_dim = 6)
  plain(x)
  plain$set_weights(made$get_weights()[-1])
  expected <- plain(x, attention_bias = array(bias, c(1, 1, 5, 5)))
  expect_close(made(x, positions = positions), as.array(expected))
})
