test_that("defaults are not passed to the call, so that Keras fills them in", {
  arguments <- list(
    attention_mask = NULL,
    return_attention_scores = FALSE,
    training = NULL,
    use_causal_mask = FALSE
  )
  expect_equal(as_call_arguments(arguments), list(use_causal_mask = FALSE))
})

test_that("an array that is given twice becomes one tensor", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_multi_head_attention(num_heads = 5, key_dim = 13)
  same <- as_inputs(list(query = x, value = x, key = x + 1), layer)
  id <- reticulate::py_id
  expect_equal(id(same$query), id(same$value))
  expect_false(id(same$query) == id(same$key))
})

test_that("inputs become float32 tensors whatever numbers they hold", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_multi_head_attention(num_heads = 5, key_dim = 13)
  dtype <- function(x) {
    reticulate::py_to_r(keras()$backend$standardize_dtype(x$dtype))
  }
  whole <- array(1:66, c(2, 3, 11))
  for (array in list(x, whole, whole > 7)) {
    tensor <- as_inputs(list(query = array), layer)$query
    expect_equal(dtype(tensor), "float32")
    expect_close(tensor, array + 0, 1e-6)
  }
})

test_that("a mask and a constant array stay in a functional model when it is saved", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  a <- input(3L, 11L)
  made <- layer_multi_head_attention(
    list(a, x[1, , , drop = FALSE][rep(1, 2), , ]),
    5,
    13,
    attention_mask = diag(3) == 1
  )
  model <- keras()$Model(a, made)
  file <- withr::local_tempfile(fileext = ".keras")
  model$save(file)
  copy <- keras()$saving$load_model(file)
  expect_close(copy$predict(x, verbose = 0L), model$predict(x, verbose = 0L))
})

test_that("the mask that a tensor of Keras carries is honoured and stays", {
  skip_without_keras()
  tokens <- rbind(c(3, 4, 0), c(5, 0, 0))
  a <- input(3L)
  embedded <- keras()$layers$Embedding(7L, 11L, mask_zero = TRUE)(a)
  made <- layer_multi_head_attention(
    embedded,
    5,
    13,
    return_attention_scores = TRUE
  )
  model <- keras()$Model(a, list(made$attention_output, made$attention_scores))
  scores <- model$predict(tokens, verbose = 0L)[[2]]
  expect_equal(max(scores[1, , , 3]), 0)
  expect_equal(max(scores[2, , , 2:3]), 0)
  expect_equal(c(scores[2, , 1, 1]), rep(1, 5), tolerance = 1e-6)
  pooled <- keras()$layers$GlobalAveragePooling1D()(embedded)
  expect_equal(
    keras()$Model(a, pooled)$predict(tokens, verbose = 0L)[2, ],
    keras()$Model(a, embedded)$predict(tokens, verbose = 0L)[2, 1, ],
    tolerance = 1e-6
  )
})
