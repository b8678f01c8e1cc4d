layer <- function(...) {
  layer_group_query_attention(
    head_dim = 5,
    num_query_heads = 6,
    num_key_value_heads = 3,
    ...
  )
}

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

test_that("options follow their rules", {
  expect_snapshot(error = TRUE, {
    layer(dropout = 1)
    layer(dropout = NULL)
    layer(dropout = NA)
    layer(use_bias = "yes")
    layer(flash_attention = NA)
    layer(seed = 1.5)
    layer(seed = -1)
    layer(sliding_window = 0)
    layer(use_gate = NULL)
    layer(qk_norm = 1)
    layer(logit_soft_cap = 0)
    layer(attention_sink = NA)
    layer(name = "")
    layer(name = "a/b")
    layer(name = 1)
    layer(trainable = "no")
    layer(dtype = 16)
    layer(units = 3)
  })
})

test_that("initializers, regularizers and constraints are names, objects or functions", {
  expect_snapshot(error = TRUE, {
    layer(kernel_initializer = NULL)
    layer(kernel_initializer = 3)
    layer(bias_initializer = NA_character_)
    layer(kernel_initializer = function() 1)
    layer(kernel_regularizer = TRUE)
    layer(activity_regularizer = c("l1", "l2"))
    layer(kernel_constraint = function() 1)
    layer(bias_constraint = "")
  })
})

test_that("a position is a position object", {
  expect_snapshot(error = TRUE, {
    layer(position = "rotary")
    layer(position = function(theta = 1) theta)
    layer(position = 1:3)
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

test_that("what is no value for Python is refused where it is given", {
  pointer <- methods::new("externalptr")
  expect_snapshot(error = TRUE, {
    layer(dtype = getLoadedDLLs()[[1]])
    layer(dtype = list())
    layer(kernel_initializer = list(class_name = "Zeros", config = pointer))
    layer(bias_constraint = pointer)
    layer(position = structure(list(), class = "kerasattention_position"))
    layer(name = structure("a", class = "foo"))
    layer_multi_head_attention(NULL, 2, 5, output_shape = stdin())
    layer_multi_head_attention(object = NULL, 2, 5, inputs = NULL)
  })
})
