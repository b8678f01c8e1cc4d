test_that("the backend is that of KERAS_BACKEND, of Keras's file, or tensorflow", {
  home <- withr::local_tempdir()
  withr::local_envvar(KERAS_HOME = home, KERAS_BACKEND = "")
  expect_equal(wanted_backend(), "tensorflow")
  file <- file.path(home, "keras.json")
  writeLines(
    c("{", "  \"epsilon\": 1e-07,", "  \"backend\": \"jax\"", "}"),
    file
  )
  expect_equal(wanted_backend(), "jax")
  withr::local_envvar(KERAS_BACKEND = "torch")
  expect_equal(wanted_backend(), "torch")
  writeLines("{}", file)
  withr::local_envvar(KERAS_BACKEND = "")
  expect_equal(wanted_backend(), "tensorflow")
})

test_that("versions are compared as versions", {
  expect_true(is_too_old("2.15.0"))
  expect_true(is_too_old("3.9.2"))
  expect_false(is_too_old("3.15.0"))
  expect_false(is_too_old("3.15.1"))
  expect_false(is_too_old("3.16.0.dev0"))
})
