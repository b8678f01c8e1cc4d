test_that("the mesh has the sizes of the devices and the heads", {
  session <- devices_session()
  expect_equal(session$mesh, c("[1] 2 1 4 1", "[1] 1 1 2 4"))
})

test_that("what cannot be split is refused with the way out", {
  session <- devices_session()
  expect_match(
    session$heads,
    "10 key/value heads of 4 query heads each .*over 8 devices without gathering; model = 2 can"
  )
  expect_match(session$`heads given`, "10 key/value heads cannot be split")
  expect_match(
    session$devices,
    "model = 16 needs 16 devices.*JAX has 8.*XLA_FLAGS.*restart"
  )
  expect_equal(session$seq[[1]], "TRUE ")
  expect_match(session$seq[[2]], "4 devices .*5 tokens; pad them to 8")
  expect_match(session$axis, "None or one of batch, seq, model")
})

test_that("arguments are checked before Python", {
  expect_snapshot(error = TRUE, head_parallel())
  expect_snapshot(error = TRUE, head_parallel(0))
  expect_snapshot(error = TRUE, head_parallel(8, batch = "all"))
  expect_snapshot(error = TRUE, head_parallel(8, num_key_value_heads = 1.5))
  expect_snapshot(error = TRUE, head_parallel(8, rules = c(a = "model")))
  expect_snapshot(error = TRUE, head_parallel(8, rules = list("model")))
  expect_snapshot(error = TRUE, head_parallel(8, rules = list(a = 1)))
  expect_snapshot(error = TRUE, head_parallel(8, mlp = NA))
})

test_that("other backends are refused, and what they have is named", {
  skip_without_keras()
  backend <- loaded_backend()
  skip_if(backend == "jax")
  error <- tryCatch(head_parallel(1), error = identity)
  expect_s3_class(error, "kerasattention_error")
  named <- c(tensorflow = "MirroredStrategy", torch = "DistributedDataParallel")
  expect_match(conditionMessage(error), named[[backend]])
})
