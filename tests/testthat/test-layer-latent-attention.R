latent <- function(object = NULL, ...) {
  arguments <- utils::modifyList(
    list(
      num_heads = 3,
      head_dim = 5,
      kv_rank = 7,
      rotary_dim = 4,
      value_dim = 11
    ),
    list(...),
    keep.null = TRUE
  )
  do.call(layer_latent_attention, c(list(object), arguments), quote = TRUE)
}

test_that("required arguments are required, sizes whole, positions rotary", {
  x <- numbers(2, 3, 13)
  expect_snapshot(error = TRUE, {
    layer_latent_attention()
    layer_latent_attention(8, 64)
    layer_latent_attention(num_heads = 3, head_dim = 5, kv_rank = 7)
    layer_latent_attention(NULL, 3, 5, 7, rotary_dim = 3)
    layer_latent_attention(NULL, 3, 5, 7.5, rotary_dim = 4)
    layer_latent_attention(NULL, 3, 5, 7, query_rank = 0, rotary_dim = 4)
    layer_latent_attention(NULL, 3, NA, 7, rotary_dim = 4)
    layer_latent_attention(NULL, 3, 5, 7, rotary_dim = 4, qk_norm = TRUE)
    layer_latent_attention(
      NULL,
      3,
      5,
      7,
      rotary_dim = 4,
      position = position_alibi()
    )
    layer_latent_attention(x, 3, 5, 7, rotary_dim = 4, value = x)
    layer_latent_attention(list(x, x), 3, 5, 7, rotary_dim = 4)
    layer_latent_attention(x[1, , ], 3, 5, 7, rotary_dim = 4)
    layer_latent_attention(
      x,
      3,
      5,
      7,
      rotary_dim = 4,
      attention_mask = matrix(TRUE, 2, 3)
    )
  })
})

# The attention written out head by head, at the positions 0 to T - 1; the default position pairs
# neighbouring features.
rotated <- function(x, theta = 10000) {
  size <- ncol(x)
  for (i in seq_len(size / 2)) {
    angle <- (seq_len(nrow(x)) - 1) * theta^(-2 * (i - 1) / size)
    first <- x[, 2 * i - 1]
    second <- x[, 2 * i]
    x[, 2 * i - 1] <- first * cos(angle) - second * sin(angle)
    x[, 2 * i] <- first * sin(angle) + second * cos(angle)
  }
  x
}

reference <- function(layer, x, causal = FALSE) {
  w <- function(name) as.array(layer$projections()[[name]]$kernel)
  rank <- layer$kv_rank
  size <- layer$head_dim
  result <- array(0, dim(x))
  for (b in seq_len(dim(x)[1])) {
    made <- x[b, , ] %*% w("latent")
    latent <- made[, 1:rank]
    latent <- latent / sqrt(rowMeans(latent^2) + 1e-6)
    shared <- rotated(made[, -(1:rank)])
    for (n in seq_len(layer$num_heads)) {
      q <- x[b, , ] %*% w("query")[, n, ]
      q <- cbind(q[, 1:size], rotated(q[, -(1:size)]))
      k <- cbind(latent %*% w("key")[, n, ], shared)
      logits <- q %*% t(k) / sqrt(ncol(q))
      if (causal) {
        logits[upper.tri(logits)] <- -Inf
      }
      weights <- exp(logits) / rowSums(exp(logits))
      heads <- weights %*% (latent %*% w("value")[, n, ])
      result[b, , ] <- result[b, , ] + heads %*% w("output")[n, , ]
    }
  }
  result
}

test_that("numbers are those of the reference", {
  skip_without_keras()
  x <- numbers(2, 6, 13)
  layer <- latent()
  layer(x)
  expect_close(layer(x), reference(layer, x))
  expect_close(
    layer(x, use_causal_mask = TRUE),
    reference(layer, x, causal = TRUE)
  )
  result <- layer(x, return_attention_scores = TRUE)
  expect_equal(dim(as.array(result$attention_scores)), c(2, 3, 6, 6))
})

test_that("a layer prints its sizes", {
  skip_without_keras()
  expect_snapshot({
    latent(name = "a", value_dim = 5)
    latent(name = "b", query_rank = 17, use_causal_mask = TRUE)
  })
})

test_that("value_dim is head_dim unless it is given", {
  skip_without_keras()
  layer <- layer_latent_attention(NULL, 3, 5, 7, rotary_dim = 4)
  expect_equal(layer$value_dim, 5L)
  expect_equal(latent()$value_dim, 11L)
  expect_equal(latent(value_dim = NULL)$value_dim, 5L)
})

test_that("a decoder keeps the latents, and its steps are those of full passes", {
  skip_without_keras()
  tokens <- input(NULL, dtype = "int32")
  hidden <- keras()$layers$Embedding(17L, 13L)(tokens)
  hidden <- hidden |>
    latent(use_causal_mask = TRUE, position = position_rotary(theta = 50))
  model <- keras()$Model(tokens, keras()$layers$Dense(17L)(hidden))
  row <- c(3, 1, 4, 1, 5)
  decoder <- incremental_decoder(model, batch_size = 1, max_length = 8)
  expect_equal(decoder$cache_bytes(), 8 * (7 + 4) * 4)
  full <- full_pass(model, row)
  expect_close(decoder$prefill(matrix(row[1:3], 1)), full[3, , drop = FALSE])
  expect_close(decoder$step(row[4]), full[4, , drop = FALSE])
  expect_close(decoder$step(row[5]), full[5, , drop = FALSE])
})

test_that("a Sequential model takes the layer, and keeps the causal mask", {
  skip_without_keras()
  model <- keras()$Sequential() |> latent(use_causal_mask = TRUE)
  x <- numbers(2, 6, 13)
  expect_equal(dim(as.array(model(x))), c(2, 6, 13))
  expect_true(model$layers[[1]]$use_causal_mask)
})
