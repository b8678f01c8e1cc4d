test_that("required arguments are required, sizes whole, axes counted from 0", {
  x <- numbers(2, 3, 11)
  f <- function(...) {
    layer_multi_head_attention(num_heads = 5, key_dim = 13, ...)
  }
  expect_snapshot(error = TRUE, {
    layer_multi_head_attention()
    layer_multi_head_attention(8, 64)
    layer_multi_head_attention(num_heads = 2.7, key_dim = 13)
    layer_multi_head_attention(num_heads = NA, key_dim = 13)
    f(value_dim = 0)
    f(output_shape = c(4, 8.5))
    f(output_shape = "8")
    f(attention_axes = 0)
    f(attention_axes = c(1, -1))
    f(attention_axes = c(1, 1))
    f(attention_axes = 1.5)
    layer_multi_head_attention(x, 5, 13, attention_axes = 2)
    layer_multi_head_attention(matrix(1, 3, 11), 5, 13)
    f(value = x)
    f(key = x)
  })
})

test_that("value and key by name are tensors, never value_dim and key_dim", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  y <- numbers(2, 7, 11, seed = 2)
  z <- numbers(2, 7, 11, seed = 3)
  shared <- list(num_heads = 5, key_dim = 13, kernel_initializer = "ones")
  layer <- do.call(layer_multi_head_attention, shared)
  expected <- as.array(layer(x, y, z))
  expect_close(
    x |>
      layer_multi_head_attention(
        5,
        13,
        value = y,
        key = z,
        kernel_initializer = "ones"
      ),
    expected
  )
  expect_close(
    layer_multi_head_attention(
      x,
      value = y,
      5,
      key = z,
      13,
      kernel_initializer = "ones"
    ),
    expected
  )
  sized <- layer_multi_head_attention(x, 5, 13, 17, value = y, name = "sized")
  expect_equal(dim(as.array(sized)), c(2, 3, 11))
})

test_that("inputs is a name of the object, and the positions stay right", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  expected <- as.array(layer_multi_head_attention(
    x,
    5,
    13,
    kernel_initializer = "ones"
  ))
  expect_close(
    layer_multi_head_attention(inputs = x, 5, 13, kernel_initializer = "ones"),
    expected
  )
  expect_close(
    layer_multi_head_attention(5, kernel_initializer = "ones", 13, inputs = x),
    expected
  )
  arguments <- list(
    inputs = list(x, x),
    num_heads = 5,
    key_dim = 13,
    kernel_initializer = "ones"
  )
  expect_close(do.call(layer_multi_head_attention, arguments), expected)
  wrapper <- function(...) {
    layer_multi_head_attention(..., kernel_initializer = "ones")
  }
  expect_close(wrapper(inputs = x, 5, 13), expected)
})

test_that("numbers are those of the reference, with value_dim and scores", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  y <- numbers(2, 7, 11, seed = 2)
  z <- numbers(2, 7, 11, seed = 3)
  layer <- layer_multi_head_attention(
    num_heads = 5,
    key_dim = 13,
    value_dim = 17,
    bias_initializer = "random_normal"
  )
  result <- layer(x, y, z, return_attention_scores = TRUE)
  expected <- reference_attention(layer, x, y, z)
  expect_close(result$attention_output, expected$attention_output)
  expect_close(result$attention_scores, expected$attention_scores)
})

test_that("output_shape takes one number, a vector or a list", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  f <- function(shape) {
    dim(as.array(layer_multi_head_attention(x, 5, 13, output_shape = shape)))
  }
  expect_equal(f(19), c(2, 3, 19))
  expect_equal(f(c(4, 8)), c(2, 3, 4, 8))
  expect_equal(f(list(4, 8L)), c(2, 3, 4, 8))
})

test_that("attention_axes = 2 of (B, rows, columns, D) attends within each row", {
  skip_without_keras()
  images <- numbers(2, 3, 7, 11)
  layer <- layer_multi_head_attention(
    num_heads = 5,
    key_dim = 13,
    attention_axes = 2
  )
  result <- as.array(layer(images))
  for (row in 1:3) {
    alone <- reference_attention(layer, images[, row, , ])$attention_output
    expect_close(result[, row, , ], alone)
  }
  scores <- layer(images, return_attention_scores = TRUE)$attention_scores
  expect_equal(length(dim(as.array(scores))), 5)
  expect_close(
    layer_multi_head_attention(
      images,
      5,
      13,
      attention_axes = c(1, 2),
      kernel_initializer = "ones"
    ),
    as.array(layer_multi_head_attention(
      images,
      5,
      13,
      kernel_initializer = "ones"
    ))
  )
})
