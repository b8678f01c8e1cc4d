test_that("a constructor is made without Python and called with it", {
  made <- new_constructor(
    "GroupQueryAttention",
    head_dim = 5L,
    class = "kerasattention_thing"
  )
  expect_s3_class(
    made,
    c("kerasattention_thing", "kerasattention_constructor"),
    exact = TRUE
  )
  skip_without_keras()
  made$args <- list(
    head_dim = 5L,
    num_query_heads = 6L,
    num_key_value_heads = 3L
  )
  expect_equal(as_python(made)$head_dim, 5L)
  expect_equal(as_python(3), 3)
  expect_error(
    as_python(new_constructor("GroupQueryAttention")),
    class = "kerasattention_error"
  )
})

test_that("a shared position that was saved is made anew", {
  skip_without_keras()
  position <- position_relative()
  made <- as_python(position)
  expect_identical(as_python(position), made)
  path <- withr::local_tempfile(fileext = ".rds")
  saveRDS(position, path)
  # What R reads is a Python object without Python behind it.
  read <- readRDS(path)
  expect_s3_class(as_python(read), class(made)[[1]])
})
