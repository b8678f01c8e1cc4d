test_that("whole numbers become Python ints, NULL stays NULL", {
  skip_without_keras()
  type <- function(x) {
    builtins <- reticulate::import_builtins()
    builtins$type(x)$`__name__`
  }
  expect_equal(type(as_int(64)), "int")
  expect_equal(type(as_int(64L)), "int")
  expect_equal(type(as_ints(c(4, 8))), "tuple")
  expect_null(as_int(NULL))
  expect_null(as_ints(NULL))
  expect_null(as_tensor(NULL))
  expect_equal(reticulate::py_to_r(as_ints(list(4, 8L))), list(4L, 8L))
  expect_equal(reticulate::py_to_r(as_ints(7)), list(7L))
})

test_that("arrays keep their axes and get their types", {
  skip_without_keras()
  x <- array(seq_len(2 * 3 * 5), c(2, 3, 5))
  for (convert in list(as_tensor, as_ids)) {
    expect_equal(reticulate::py_to_r(convert(x)), x, ignore_attr = TRUE)
  }
  expect_equal(as.character(as_tensor(x)$dtype), "float32")
  expect_equal(as.character(as_ids(x)$dtype), "int32")
  mask <- x %% 2 == 0
  expect_equal(as.character(as_mask(mask)$dtype), "bool")
  expect_equal(reticulate::py_to_r(as_mask(mask)), mask)
  expect_equal(reticulate::py_to_r(as_mask(mask + 0)), mask)
  # x[1, 2, 3] in R is x[0, 1, 2] in Python.
  item <- as_tensor(x)$item(0L, 1L, 2L)
  expect_equal(reticulate::py_to_r(item), x[1, 2, 3])
})

test_that("names do not matter and a vector has one axis", {
  skip_without_keras()
  x <- matrix(1:6, 2, dimnames = list(c("a", "b"), NULL))
  expect_equal(reticulate::py_to_r(as_tensor(x)), unname(x), ignore_attr = TRUE)
  expect_equal(dim(reticulate::py_to_r(as_tensor(c(a = 1, b = 2)))), 2L)
})
