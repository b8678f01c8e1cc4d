test_that("sections print as they are given, and reach Python", {
  expect_snapshot({
    position_rotary(sections = c(16, 24, 24))
    position_rotary(sections = list(16, 24, 24))
    position_rotary(
      sections = list(type = "interleaved", sizes = c(24, 20, 20))
    )
  })
  skip_without_keras()
  made <- as_python(position_rotary(sections = c(2, 1)))
  expect_equal(made$get_config()$sections, c(2L, 1L))
  axial <- list(type = "axial", sizes = c(2L, 1L))
  made <- as_python(position_rotary(sections = axial))
  expect_equal(made$get_config()$sections, axial)
  expect_equal(made$axes, 2L)
})

test_that("wrong sections are told apart", {
  expect_snapshot(error = TRUE, {
    position_rotary(sections = 7)
    position_rotary(sections = c(3, 0))
    position_rotary(sections = c(3.5, 1))
    position_rotary(sections = "16, 24")
    position_rotary(sections = list(type = "both", sizes = c(1, 1)))
    position_rotary(sections = list(type = "axial"))
    position_rotary(sections = list(type = "axial", size = c(1, 1)))
    position_rotary(sections = list(type = "axial", 3))
    position_rotary(
      scaling = list(type = "linear", factor = 2),
      sections = list(type = "axial", sizes = c(1, 1))
    )
  })
})

test_that("each axis of the positions turns its pairs", {
  skip_without_keras()
  x <- numbers(2, 5, 6)
  # One head as wide as the input, whose projections are the identity.
  layer <- layer_multi_head_attention(
    num_heads = 1,
    key_dim = 6,
    use_bias = FALSE,
    position = position_rotary(theta = 100, sections = c(1, 2))
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
    angle <- p[c(1, 2, 2)] * 100^(-c(0, 2, 4) / 6)
    c(
      x[1:3] * cos(angle) - x[4:6] * sin(angle),
      x[4:6] * cos(angle) + x[1:3] * sin(angle)
    )
  }
  digits <- c(3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4)
  positions <- array(digits, c(2, 5, 2))
  expected <- array(0, dim(x))
  for (b in 1:2) {
    turned <- vapply(1:5, \(t) turn(x[b, t, ], positions[b, t, ]), numeric(6))
    turned <- t(turned)
    weights <- exp(turned %*% t(turned) / sqrt(6))
    weights[upper.tri(weights)] <- 0 # the order of tokens, not their positions
    expected[b, , ] <- (weights / rowSums(weights)) %*% x[b, , ]
  }
  found <- layer(x, positions = positions, use_causal_mask = TRUE)
  expect_close(found, expected)
  found <- layer(x, positions = positions + 0.5, use_causal_mask = TRUE)
  expect_close(found, expected)
})

test_that("positions that the layer does not take are named", {
  skip_without_keras()
  x <- numbers(2, 5, 6)
  positions <- array(0L, c(2, 5, 2))
  axial <- list(type = "axial", sizes = c(1, 2))
  attend <- function(position = NULL, ...) {
    layer_multi_head_attention(
      x,
      num_heads = 2,
      key_dim = 6,
      position = position,
      name = "attention",
      ...
    )
  }
  expect_snapshot(error = TRUE, {
    attend(positions = positions)
    attend(position_rotary(sections = c(1, 1, 1)), positions = positions)
    attend(position_rotary(sections = axial))
    attend(position_rotary(sections = axial), positions = positions[, 1:4, ])
  })
})
