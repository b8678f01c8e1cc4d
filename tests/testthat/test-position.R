test_that("positions print as the call that makes them", {
  expect_snapshot({
    position_rotary()
    position_rotary(theta = 5e5, fraction = 0.25, layout = "interleaved")
    position_rotary(1e6, scaling = list(rope_type = "linear", factor = 8L))
    position_rotary(
      scaling = list(type = "ntk", rope_type = "ntk", factor = 2)
    )
    position_rotary(
      scaling = list(
        type = "yarn",
        factor = 32,
        original_max_position_embeddings = 4096,
        attention_factor = NULL,
        truncate = FALSE
      )
    )
    position_alibi()
    position_relative(16, 100)
  })
})

test_that("wrong arguments are told apart before Python starts", {
  expect_snapshot(error = TRUE, {
    position_rotary(theta = 1)
    position_rotary(theta = NA)
    position_rotary(fraction = 0)
    position_rotary(fraction = 1.5)
    position_rotary(layout = "both")
    position_rotary(scaling = "linear")
    position_rotary(scaling = list(2))
    position_rotary(scaling = list(type = "dynamic", factor = 2))
    position_rotary(scaling = list(type = "linear", rope_type = "ntk"))
    position_rotary(scaling = list(type = "linear"))
    position_rotary(scaling = list(type = "linear", factor = 0.5))
    position_rotary(scaling = list(type = "yarn", factor = 2))
    position_rotary(scaling = list(type = "ntk", factor = 2, beta_fast = 32))
    position_rotary(
      scaling = list(type = "llama3", factor = 8, low_freq_facto = 1)
    )
    position_rotary(
      scaling = list(type = "llama3", factor = 8, low_freq_factor = 4)
    )
    position_rotary(
      scaling = list(
        type = "yarn",
        factor = 2,
        original_max_position_embeddings = 4096.5
      )
    )
    position_rotary(
      scaling = list(
        type = "yarn",
        factor = 2,
        original_max_position_embeddings = 4096,
        truncate = NA
      )
    )
    position_relative(31)
    position_relative(2)
    position_relative(32, 16)
    position_relative(32, 128.5)
    layer_multi_head_attention(
      num_heads = 2,
      key_dim = 4,
      position = position_rotary
    )
    layer_multi_head_attention(num_heads = 2, key_dim = 4, position = "rotary")
  })
  expect_error(position_rotary(NA), class = "kerasattention_error")
})

test_that("a position becomes that of Python, whole numbers as such", {
  skip_without_keras()
  rotary <- as_python(position_rotary(
    5e5,
    0.5,
    "interleaved",
    list(
      rope_type = "llama3",
      factor = 8,
      original_max_position_embeddings = 8192
    )
  ))
  expect_equal(
    rotary$get_config(),
    list(
      theta = 5e5,
      fraction = 0.5,
      layout = "interleaved",
      scaling = list(
        type = "llama3",
        factor = 8,
        original_max_position_embeddings = 8192L
      )
    )
  )
  relative <- as_python(position_relative(16, 100))
  expect_identical(relative$num_buckets, 16L)
  expect_identical(relative$max_distance, 100L)
})

test_that("all ways to name a scaling reach Python", {
  skip_without_keras()
  sizes <- list(
    linear = list(factor = 2),
    ntk = list(factor = 2),
    yarn = list(
      factor = 2,
      original_max_position_embeddings = 64,
      attention_factor = 1.5,
      beta_fast = 16,
      beta_slow = 2,
      mscale = 1,
      mscale_all_dim = 0.5,
      truncate = FALSE
    ),
    llama3 = list(
      factor = 2,
      low_freq_factor = 1,
      high_freq_factor = 4,
      original_max_position_embeddings = 64
    )
  )
  expect_setequal(names(sizes), names(scaling_types))
  for (type in names(sizes)) {
    known <- c(scaling_types[[type]]$must, scaling_types[[type]]$may)
    expect_setequal(names(sizes[[type]]), known)
    scaling <- c(list(type = type), sizes[[type]])
    made <- as_python(position_rotary(scaling = scaling))
    expect_equal(made$scaling[names(scaling)], scaling)
  }
})

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

test_that("a shared position that was saved is made anew", {
  skip_without_keras()
  position <- position_relative()
  made <- as_python(position)
  expect_identical(as_python(position), made)
  path <- withr::local_tempfile(fileext = ".rds")
  saveRDS(position, path)
  # What R reads is a Python object without Python behind it.
  read <- readRDS(path)
  expect_s3_class(as_python(read), class(made)[[1]])
})

test_that("a model with positions comes back from its file", {
  skip_without_keras()
  x <- numbers(2, 5, 16)
  for (position in list(
    position_rotary(layout = "interleaved"),
    position_alibi(),
    position_relative()
  )) {
    model <- keras()$Sequential() |>
      layer_group_query_attention(8, 4, 2, position = position)
    expected <- model(x)
    path <- withr::local_tempfile(fileext = ".keras")
    model$save(path)
    expect_close(keras()$saving$load_model(path)(x), expected, 1e-6)
  }
})
