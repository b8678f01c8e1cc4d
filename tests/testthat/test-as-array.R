test_that("tensors, variables and NumPy arrays become R arrays with their axes", {
  skip_without_keras()
  x <- numbers(2, 3, 5)
  ops <- keras()$ops
  expect_close(ops$convert_to_tensor(x, dtype = "float32"), x, 1e-6)
  expect_close(keras()$Variable(x, dtype = "float32"), x, 1e-6)
  expect_close(reticulate::np_array(x), x, 1e-12)
  expect_equal(as.array(ops$convert_to_tensor(1:3)), array(1:3))
  expect_equal(dim(as.array(ops$convert_to_tensor(2.5))), 1L)
  expect_equal(as.array(ops$convert_to_tensor(x > 0)), x > 0)
  expect_close(
    ops$convert_to_tensor(array(0.5, c(2, 3)), dtype = "bfloat16"),
    matrix(0.5, 2, 3)
  )
})

test_that("other Python objects are refused as before, and other methods go first", {
  skip_without_keras()
  expect_error(as.array(reticulate::import("sys")))
  frame <- reticulate::r_to_py(list(a = 1))
  expect_error(as.array(frame))
  method <- utils::getS3method(
    "as.array",
    "numpy.ndarray",
    envir = asNamespace("reticulate")
  )
  expect_false(identical(method, as_array_python))
})
