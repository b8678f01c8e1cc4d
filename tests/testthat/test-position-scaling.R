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

test_that("wrong scalings are told apart", {
  expect_snapshot(error = TRUE, {
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
  })
})
