test_that("a mask becomes that of Python", {
  skip_without_keras()
  shown <- function(mask) reticulate::py_repr(as_python_mask(mask))
  expect_equal(
    shown(mask_causal() & (mask_window(8, 1) | mask_sinks(2))),
    "CausalMask() & (WindowMask(8, 1) | PrefixMask(2))"
  )
  expect_equal(
    shown(!(mask_chunk(3) | mask_dilated(4)) & mask_prefix(5)),
    "~(ChunkMask(3) | DilatedMask(4)) & PrefixMask(5)"
  )
  expect_equal(
    shown(mask_blocks(matrix(c(TRUE, FALSE), 1), 7)),
    "BlockMask(<1 x 2 matrix>, 7)"
  )
  expect_equal(
    shown(mask_function(function(q, k) k <= q)),
    "MaskFunction(function (q, k) k <= q)"
  )
  expect_null(as_python_mask(NULL))
})
