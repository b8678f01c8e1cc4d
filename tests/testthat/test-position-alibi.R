test_that("ALiBi lowers logits by slope times distance, as R does it", {
  skip_without_keras()
  x <- numbers(2, 7, 4)
  layer <- layer_multi_head_attention(
    num_heads = 2,
    key_dim = 3,
    position = position_alibi()
  )
  plain <- layer_multi_head_attention(num_heads = 2, key_dim = 3)
  layer(x)
  plain(x)
  plain$set_weights(layer$get_weights())
  scores <- function(layer) {
    as.array(layer(x, return_attention_scores = TRUE)$attention_scores)
  }
  logits <- log(scores(plain)) # up to a constant of each row
  distance <- abs(outer(1:7, 1:7, `-`))
  for (head in 1:2) {
    slope <- 2^(-8 * head / 2)
    for (b in 1:2) {
      lowered <- exp(logits[b, head, , ] - slope * distance)
      expect_close(
        scores(layer)[b, head, , ],
        lowered / rowSums(lowered),
        tolerance = 1e-6
      )
    }
  }
})
