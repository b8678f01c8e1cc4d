test_that("load_projections() takes torch's matrices", {
  skip_without_keras()
  layer <- layer_group_query_attention(
    head_dim = 4,
    num_query_heads = 6,
    num_key_value_heads = 2
  )
  x <- array(rnorm(5 * 14), c(1, 5, 14))
  layer(x)
  set.seed(1)
  parts <- list(
    query = matrix(rnorm(24 * 14), 24),
    key = matrix(rnorm(8 * 14), 8),
    value = matrix(rnorm(8 * 14), 8),
    output = matrix(rnorm(14 * 24), 14)
  )
  bias <- rnorm(24)
  load_projections(
    layer,
    query = list(parts$query, bias),
    key = list(parts$key, numeric(8)),
    value = list(parts$value, numeric(8)),
    output = list(parts$output, numeric(14))
  )
  query <- matrix(
    aperm(as.array(layer$projection("query")(x))[1, , , ], c(1, 3, 2)),
    5
  )
  expect_equal(
    query,
    x[1, , ] %*% t(parts$query) + rep(bias, each = 5),
    tolerance = 1e-5
  )
  expect_snapshot(error = TRUE, {
    load_projections(
      layer,
      t(parts$query),
      parts$key,
      parts$value,
      parts$output
    )
  })
  expect_snapshot(error = TRUE, {
    load_projections(layer, parts$query, parts$key, parts$value)
  })
  expect_snapshot(error = TRUE, {
    load_projections("layer", parts$query, parts$key, parts$value, parts$output)
  })
})

test_that("load_projections() changes nothing if anything does not fit", {
  skip_without_keras()
  layer <- layer_group_query_attention(
    head_dim = 4,
    num_query_heads = 6,
    num_key_value_heads = 2,
    use_bias = FALSE
  )
  layer(array(0, c(1, 5, 14)))
  before <- layer$get_weights()
  parts <- list(
    query = numbers(24, 14),
    key = numbers(8, 14),
    value = numbers(8, 14)
  )
  load <- function(...) do.call(load_projections, c(list(layer), parts, ...))
  expect_snapshot(error = TRUE, {
    load(output = list(numbers(24, 14)))
  })
  expect_snapshot(error = TRUE, {
    load(output = list(list(numbers(14, 24), numeric(14))))
  })
  expect_snapshot(error = TRUE, {
    load(output = list(numbers(14, 24)), sink = list(numeric(6)))
  })
  expect_equal(layer$get_weights(), before)
})

test_that("load_projections() undoes the permutation of llama.cpp", {
  skip_without_keras()
  plain <- layer_group_query_attention(
    head_dim = 6,
    num_query_heads = 4,
    num_key_value_heads = 2,
    use_bias = FALSE
  )
  plain(array(0, c(1, 5, 7)))
  loaded <- function(permute, ...) {
    load_projections(
      plain,
      query = permute(numbers(24, 7), 4),
      key = permute(numbers(12, 7, seed = 2), 2),
      value = numbers(12, 7, seed = 3),
      output = numbers(7, 24, seed = 4),
      ...
    )
    plain$get_weights()
  }
  # Of each head the rows 1, 4, 2, 5, 3, 6: the two that turn together side by side.
  side_by_side <- function(rows, heads) {
    rows[outer(c(1, 4, 2, 5, 3, 6), 6 * (seq_len(heads) - 1), `+`), ]
  }
  expected <- loaded(function(rows, heads) rows)
  expect_equal(loaded(side_by_side, undo_permutation = TRUE), expected)
  expect_false(isTRUE(all.equal(loaded(side_by_side), expected)))
})
