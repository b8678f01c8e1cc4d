test_that("an object that nothing can be applied to is refused, with the way out", {
  f <- function(object, ...) check_inputs(object, ...)
  expect_snapshot(error = TRUE, {
    f("hello")
    f(64)
    f(1:7)
    f(mtcars)
    f(c(numbers(2, 3, 5), numbers(2, 3, 5)))
    f(mean)
    f(array(c(1, NA), c(1, 2, 1)))
    f(array(NA, c(1, 2, 1)))
    f(array(1i, c(1, 2, 1)))
    f(structure(1, class = "python.builtin.object"))
  })
})

test_that("a list has two or three tensors, by position or all named", {
  x <- numbers(2, 3, 5)
  y <- numbers(2, 7, 5, seed = 2)
  f <- function(object, ...) check_inputs(object, ...)
  expect_equal(f(list(x, y)), list(query = x, value = y))
  expect_equal(f(list(x, y, y + 1)), list(query = x, value = y, key = y + 1))
  expect_equal(
    f(list(key = y + 1, query = x, value = y)),
    list(query = x, value = y, key = y + 1)
  )
  expect_equal(f(x, value = y), list(query = x, value = y))
  expect_snapshot(error = TRUE, {
    f(list(x))
    f(list(x, x, x, x))
    f(list(query = x, valeu = y))
    f(list(query = x, y))
    f(list(query = x, key = y))
    f(list(query = x, value = y, value = y))
    f(list())
    f(list(x, NULL))
    f(list(x, "y"))
    f(list(x, y), value = y)
    f(x, key = y)
    f(x, value = mtcars)
    f(NULL, value = y)
    f(list(x, array(c(1, NA), c(1, 2, 1))))
  })
})

test_that("models and layers are no tensors", {
  skip_without_keras()
  x <- input(3L, 5L)
  model <- keras()$Model(x, x)
  f <- function(object, ...) check_inputs(object, ...)
  expect_snapshot(error = TRUE, {
    f(keras()$layers$Dense(3L))
    f(keras()$initializers$Zeros())
    f(keras()$Sequential(), value = x)
  })
  expect_error(f(model), "model\\$output", class = "kerasattention_error")
})

test_that("tensors, variables and NumPy arrays pass", {
  skip_without_keras()
  x <- numbers(2, 3, 5)
  for (tensor in list(
    input(3L, 5L),
    keras()$ops$convert_to_tensor(x),
    keras()$Variable(x),
    reticulate::np_array(x)
  )) {
    expect_identical(check_inputs(tensor), list(query = tensor))
  }
})
