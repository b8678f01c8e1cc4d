test_that("rotary positions in the pipe turn as R does it", {
  skip_without_keras()
  x <- numbers(2, 7, 6)
  # One head as wide as the input, whose projections are the identity.
  layer <- layer_multi_head_attention(
    num_heads = 1,
    key_dim = 6,
    use_bias = FALSE,
    position = position_rotary(theta = 100)
  )
  layer(x)
  identity <- diag(6)
  layer$set_weights(list(
    array(identity, c(6, 1, 6)),
    array(identity, c(6, 1, 6)),
    array(identity, c(6, 1, 6)),
    array(identity, c(1, 6, 6))
  ))
  turn <- function(x, p) {
    angle <- p * 100^(-c(0, 2, 4) / 6)
    c(
      x[1:3] * cos(angle) - x[4:6] * sin(angle),
      x[4:6] * cos(angle) + x[1:3] * sin(angle)
    )
  }
  positions <- rbind(0:6, c(3, 1, 4, 1, 5, 9, 2))
  expected <- array(0, dim(x))
  for (b in 1:2) {
    turned <- t(vapply(1:7, \(t) turn(x[b, t, ], positions[b, t]), numeric(6)))
    weights <- exp(turned %*% t(turned) / sqrt(6))
    expected[b, , ] <- (weights / rowSums(weights)) %*% x[b, , ]
  }
  expect_close(layer(x, positions = positions), expected)
})

test_that("wrong arguments are told apart", {
  expect_snapshot(error = TRUE, {
    position_rotary(theta = 1)
    position_rotary(theta = NA)
    position_rotary(fraction = 0)
    position_rotary(fraction = 1.5)
    position_rotary(layout = "both")
  })
  expect_error(position_rotary(NA), class = "kerasattention_error")
})
