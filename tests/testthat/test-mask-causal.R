test_that("arguments of masks are checked before Python starts", {
  expect_snapshot(error = TRUE, {
    mask_window()
    mask_window(0)
    mask_window(3, 1.5)
    mask_chunk(NA)
    mask_prefix("2")
    mask_sinks(-1)
    mask_dilated(c(1, 2))
    mask_blocks(1:3, 2)
    mask_blocks(matrix(c(TRUE, NA), 1), 2)
    mask_blocks(diag(3) * 2, 2)
    mask_blocks(diag(3), 0)
  })
})

test_that("a layer's weights are zero where the mask says so, and only there", {
  skip_without_keras()
  x <- numbers(2, 13, 6)
  masks <- list(
    mask_causal() & (mask_window(4) | mask_sinks(2)),
    mask_chunk(5) | mask_dilated(4),
    !mask_blocks(diag(3), 5),
    mask_causal() | mask_prefix(3)
  )
  for (mask in masks) {
    seen <- visible_pairs(mask, 0:12)
    for (made in list(
      layer_multi_head_attention(num_heads = 2, key_dim = 3, mask = mask),
      layer(mask = mask)
    )) {
      result <- made(x, return_attention_scores = TRUE)
      scores <- as.array(result$attention_scores)
      for (b in 1:2) {
        expect_equal(scores[b, 2, , ] > 0, seen)
      }
    }
  }
})

test_that("a mask is the mask of an array, and comes back from a file", {
  skip_without_keras()
  x <- numbers(2, 13, 6)
  mask <- mask_causal() & (mask_window(4) | mask_sinks(2))
  model <- keras()$Sequential() |>
    layer_multi_head_attention(num_heads = 2, key_dim = 3, mask = mask)
  expected <- model(x)
  trained <- model$layers[[1]]
  plain <- layer_multi_head_attention(num_heads = 2, key_dim = 3)
  plain(x)
  plain$set_weights(trained$get_weights())
  array <- visible_pairs(mask, 0:12)
  expect_close(plain(x, attention_mask = array), expected, 1e-6)
  path <- withr::local_tempfile(fileext = ".keras")
  model$save(path)
  expect_close(keras()$saving$load_model(path)(x), expected, 1e-6)
})
