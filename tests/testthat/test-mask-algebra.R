test_that("masks print as the calls that make them", {
  expect_snapshot({
    mask_causal()
    mask_window(8)
    mask_window(8, 1)
    mask_causal() & (mask_window(256) | mask_sinks(4))
    mask_causal() & mask_window(3) & !(mask_chunk(5) | mask_prefix(2))
    !mask_dilated(2) | mask_blocks(diag(2), 100000)
    mask_function(function(q, k) k <= q)
  })
})

test_that("masks are combined with masks, by `&`, `|` and `!`", {
  expect_snapshot(error = TRUE, {
    mask_causal() + mask_causal()
    mask_causal() & TRUE
    matrix(TRUE, 2, 2) | mask_causal()
  })
})

test_that("the argument of a layer is a mask", {
  expect_snapshot(error = TRUE, {
    layer(mask = "causal")
    layer(mask = mask_causal)
    layer(mask = matrix(TRUE, 3, 3))
  })
})

test_that("rules are those of the help", {
  at <- 0:12
  q <- matrix(at, 13, 13)
  k <- t(q)
  expect_equal(visible_pairs(mask_causal(), at), k <= q)
  expect_equal(visible_pairs(mask_window(3), at), abs(q - k) < 3)
  expect_equal(visible_pairs(mask_window(4, 2), at), q - 4 < k & k < q + 2)
  expect_equal(visible_pairs(mask_chunk(5), at), q %/% 5 == k %/% 5)
  expect_equal(visible_pairs(mask_sinks(2), at), k < 2)
  expect_equal(visible_pairs(mask_dilated(3), at), (q - k) %% 3 == 0)
  expect_equal(visible_pairs(!mask_causal(), at), k > q)
  blocks <- matrix(c(TRUE, FALSE, TRUE, TRUE), 2)
  seen <- matrix(FALSE, 13, 13)
  seen[1:10, 1:10] <- blocks[cbind(
    as.vector(q[1:10, 1:10] %/% 5 + 1),
    as.vector(k[1:10, 1:10] %/% 5 + 1)
  )]
  expect_equal(visible_pairs(mask_blocks(blocks, 5), at), seen)
})
