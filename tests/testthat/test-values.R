# Values with a class or axes of their own.
odd_values <- function() {
  list(
    table = table(c(1, 1)),
    ts = ts(1),
    integer64 = structure(1, class = "integer64"),
    date = Sys.Date(),
    foo = structure(8, class = "foo"),
    axes = array(1, c(1, 1)),
    pointer = methods::new("externalptr"),
    false_python = structure(1, class = "python.builtin.object"),
    empty_python = structure(new.env(), class = "python.builtin.object")
  )
}

test_that("values with a class or axes of their own are no plain values", {
  for (x in odd_values()) {
    expect_false(is_number(x))
    expect_false(is_whole_number(x))
    expect_false(is_flag(x))
    expect_false(is_string(x))
    expect_false(is_python(x))
    expect_false(is_model(x))
    expect_false(is_tensor(x))
  }
  expect_false(is_flag(structure(TRUE, class = "foo")))
  expect_false(is_string(noquote("a")))
  expect_true(is_string(structure("a", class = c("glue", "character"))))
  expect_true(is_number(array(1, 1)))
})

test_that("what Python cannot take is found in lists too", {
  expect_true(is_convertible(list(a = 1, b = list("c", NULL, mean))))
  for (x in odd_values()[c(
    "table",
    "pointer",
    "false_python",
    "empty_python"
  )]) {
    expect_false(is_convertible(x))
    expect_false(is_convertible(list(a = list(x))))
  }
  expect_false(is_convertible(y ~ x))
  expect_false(is_convertible(globalenv()))
  expect_false(is_convertible(stdin()))
})

test_that("modules, classes and plain objects of Python are no tensors", {
  skip_without_keras()
  np <- reticulate::import("numpy", convert = FALSE)
  expect_true(is_tensor(np$zeros(3L)))
  expect_false(is_tensor(np))
  expect_false(is_tensor(np$ndarray))
  expect_true(is_array_like(reticulate::r_to_py(list(1, 2))))
  expect_false(is_array_like(reticulate::r_to_py(list(a = 1))))
})
