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
