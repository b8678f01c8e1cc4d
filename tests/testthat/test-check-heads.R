test_that("heads must divide, and the message says which numbers do", {
  expect_snapshot(error = TRUE, {
    layer_group_query_attention(
      head_dim = 5,
      num_query_heads = 6,
      num_key_value_heads = 4
    )
    layer_group_query_attention(
      head_dim = 5,
      num_query_heads = 2,
      num_key_value_heads = 4
    )
  })
})

test_that("a prime number of heads beyond any size is answered at once", {
  time <- system.time({
    expect_equal(divisors_of(2^31 - 1), c(1, 2^31 - 1))
    expect_equal(divisors_of(36), c(1, 2, 3, 4, 6, 9, 12, 18, 36))
    expect_snapshot(error = TRUE, {
      layer_group_query_attention(NULL, 5, 2^31 - 1, 2)
      layer_group_query_attention(NULL, 5, 5040, 11)
      layer_group_query_attention(NULL, 5, 2^31 - 1, 1)
      layer_multi_head_attention(NULL, 1e6, 1e6)
      layer_multi_head_attention(NULL, 2, 5, value_dim = 2^31 - 1)
      layer_multi_head_attention(NULL, 2, 5, output_shape = 2^31 - 1)
      layer_multi_head_attention(NULL, 2, 5, attention_axes = 2^31 - 1)
    })
  })
  expect_lt(time[["user.self"]], 5)
})
