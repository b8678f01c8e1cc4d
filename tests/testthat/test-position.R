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

test_that("a position is a position object", {
  expect_snapshot(error = TRUE, {
    layer(position = "rotary")
    layer(position = position_rotary)
    layer(position = 1:3)
  })
})
