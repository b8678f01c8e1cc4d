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
    ),
    longrope = list(
      short_factor = c(1, 1.5),
      long_factor = c(2, 3),
      original_max_position_embeddings = 64,
      max_position_embeddings = 256,
      factor = 4,
      attention_factor = 1.25,
      length = 128
    ),
    dynamic = list(
      factor = 2,
      original_max_position_embeddings = 64,
      length = 128
    ),
    proportional = list(factor = 2, partial_rotary_factor = 0.5)
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

test_that("wrong scalings are told apart", {
  expect_snapshot(error = TRUE, {
    position_rotary(scaling = "linear")
    position_rotary(scaling = list(2))
    position_rotary(scaling = list(type = "static", factor = 2))
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
  })
})

test_that("the parameters of scalings by length are checked", {
  longrope <- list(
    type = "longrope",
    short_factor = c(1, 1.5),
    long_factor = list(2, 3),
    original_max_position_embeddings = 64,
    max_position_embeddings = 256
  )
  with <- function(...) {
    given <- list(...)
    longrope[names(given)] <- given
    position_rotary(scaling = longrope)
  }
  expect_snapshot(with())
  expect_snapshot(error = TRUE, {
    position_rotary(scaling = list(type = "dynamic", factor = 2))
    with(short_factor = c(1, -1))
    with(long_factor = "1, 2")
    with(long_factor = list(1, "2"))
    with(original_max_position_embeddings = 1)
    with(length = 10.5)
    with(max_position_embeddings = NULL)
    position_rotary(
      scaling = list(type = "proportional", partial_rotary_factor = 1.5)
    )
    position_rotary(fraction = 0.5, scaling = list(type = "proportional"))
  })
})

test_that("a scaling by length reads long sequences with other frequencies", {
  skip_without_keras()
  layer <- function(...) {
    scaling <- list(
      type = "dynamic",
      factor = 2,
      original_max_position_embeddings = 4,
      ...
    )
    set.seed(1)
    layer_multi_head_attention(
      num_heads = 2,
      key_dim = 6,
      position = position_rotary(scaling = scaling),
      seed = 1
    )
  }
  free <- layer()
  fixed <- layer(length = 7)
  x <- numbers(1, 7, 6)
  free(x)
  fixed(x)
  fixed$set_weights(free$get_weights())
  expect_close(fixed(x), free(x), 1e-6)
  short <- x[, 1:4, , drop = FALSE]
  expect_gt(max(abs(as.array(fixed(short)) - as.array(free(short)))), 1e-4)
})
