test_that("steps give the logits of the full pass", {
  model <- token_model()
  row <- c(3, 1, 4, 1, 5, 9, 2, 6)
  expected <- full_pass(model, row)
  decoder <- incremental_decoder(model, batch_size = 1, max_length = 9)
  expect_close(decoder$prefill(row[1:3]), expected[3, , drop = FALSE], 1e-4)
  expect_close(decoder$step(row[4]), expected[4, , drop = FALSE], 1e-4)
  # Several tokens of one row, as a vector or a matrix.
  expect_close(decoder$step(row[5:6]), expected[6, , drop = FALSE], 1e-4)
  last <- decoder$step(matrix(row[7:8], 1))
  expect_close(last, expected[8, , drop = FALSE], 1e-4)
  expect_equal(decoder$length(), 8)
})

test_that("rows of different length are decoded as each alone", {
  model <- token_model()
  decoder <- incremental_decoder(model, batch_size = 2, max_length = 9)
  logits <- decoder$prefill(list(c(3, 1, 4), c(9, 2)))
  expect_equal(dim(logits), c(2, 13))
  expect_close(logits[1, ], full_pass(model, c(3, 1, 4))[3, ], 1e-4)
  expect_close(logits[2, ], full_pass(model, c(9, 2))[2, ], 1e-4)
  logits <- decoder$step(c(5, 6))
  expect_close(logits[1, ], full_pass(model, c(3, 1, 4, 5))[4, ], 1e-4)
  expect_close(logits[2, ], full_pass(model, c(9, 2, 6))[3, ], 1e-4)
})

test_that("the caches are of the size that the help promises", {
  # 2 x B x max_length x K x H numbers of 4 bytes
  decoder <- incremental_decoder(token_model(), 3, max_length = 11)
  expect_equal(decoder$cache_bytes(), 2 * 3 * 11 * 2 * 4 * 4)
  decoder <- incremental_decoder(token_model(window = 5), 3, max_length = 11)
  expect_equal(decoder$cache_bytes(), 2 * 3 * 5 * 2 * 4 * 4)
})

test_that("a decoder prints itself and starts again after reset()", {
  model <- token_model()
  decoder <- incremental_decoder(model, 1, 9)
  expect_snapshot(decoder)
  first <- decoder$prefill(c(3, 1, 4))
  expect_snapshot(decoder)
  expect_null(decoder$reset())
  expect_equal(decoder$length(), 0)
  expect_equal(decoder$prefill(c(3, 1, 4)), first)
})

test_that("rows may outgrow caches that roll", {
  model <- token_model(window = 3)
  row <- c(3, 1, 4, 1, 5, 9, 2, 6)
  decoder <- incremental_decoder(model, 1, max_length = 4)
  decoder$prefill(row[1:2])
  for (token in row[3:8]) {
    logits <- decoder$step(token)
  }
  expect_close(logits, full_pass(model, row)[8, , drop = FALSE], 1e-4)
})

test_that("wrong arguments and a full context are told", {
  model <- token_model()
  decoder <- incremental_decoder(model, 2, 4)
  expect_snapshot(error = TRUE, {
    incremental_decoder(model)
    incremental_decoder(1, 1, 1)
    incremental_decoder(model, 0, 1)
    incremental_decoder(model, 1, 2.5)
    incremental_decoder(model, 2^31 - 1, 4)
    incremental_decoder(model, 1, 2^31 - 1)
    decoder$step(c(1, 2))
    decoder$prefill()
    decoder$step(list(1, 2))
    decoder$prefill("text")
    decoder$prefill(c(1, 2, 3))
    decoder$prefill(matrix(1, 2, 5))
  })
  decoder$prefill(matrix(1, 2, 4))
  expect_snapshot(error = TRUE, {
    decoder$step(c(1, 2))
    decoder$prefill(matrix(1, 2, 4))
  })
})
