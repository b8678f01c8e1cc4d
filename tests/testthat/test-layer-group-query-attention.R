attend <- function(object, ...) {
  layer_group_query_attention(object, 5, 6, 3, ..., bias_initializer = "ones")
}

new_layer <- function(...) {
  layer_group_query_attention(
    head_dim = 5,
    num_query_heads = 6,
    num_key_value_heads = 3,
    bias_initializer = "random_normal",
    ...
  )
}

test_that("required arguments are required, sizes whole", {
  x <- numbers(2, 3, 11)
  expect_snapshot(error = TRUE, {
    layer_group_query_attention()
    layer_group_query_attention(64, 8, 2)
    layer_group_query_attention(head_dim = 5, num_query_heads = 6)
    layer_group_query_attention(
      head_dim = 64.5,
      num_query_heads = 6,
      num_key_value_heads = 3
    )
    layer_group_query_attention(
      head_dim = 0,
      num_query_heads = 6,
      num_key_value_heads = 3
    )
    layer_group_query_attention(
      head_dim = "4",
      num_query_heads = 6,
      num_key_value_heads = 3
    )
    layer_group_query_attention(
      head_dim = NA,
      num_query_heads = 6,
      num_key_value_heads = 3
    )
    layer_group_query_attention(
      head_dim = 5,
      num_query_heads = -6,
      num_key_value_heads = 3
    )
    layer_group_query_attention(x, 5, 6, 3, attention_mask = matrix(TRUE, 2, 3))
    layer_group_query_attention(x[1, , ], 5, 6, 3)
    layer_group_query_attention(x, 5, 6, 3, heads = 3)
  })
})

test_that("a user's own error in an argument is the user's", {
  x <- numbers(2, 3, 11)
  expect_error(layer_group_query_attention(x, stop("mine"), 6, 3), "^mine$")
})

test_that("numbers are those of the reference, for every form of the call", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  y <- numbers(2, 7, 11, seed = 2)
  z <- numbers(2, 7, 11, seed = 3)
  layer <- new_layer()
  mask <- array(numbers(2, 6, 3, 7) > -0.5, c(2, 6, 3, 7))
  none <- array(TRUE, c(2, 6, 3, 7))

  self <- reference_attention(
    {
      layer(x)
      layer
    },
    x
  )$attention_output
  expect_close(layer(x), self)
  expect_close(layer(query = x), self)
  expect_close(layer(object = x), self)

  cross <- reference_attention(layer, x, y)$attention_output
  expect_close(layer(x, y), cross)
  expect_close(layer(list(x, y)), cross)
  expect_close(layer(x, value = y), cross)

  keys <- reference_attention(layer, x, y, z)$attention_output
  expect_close(layer(x, y, z), keys)
  expect_close(layer(list(key = z, query = x, value = y)), keys)
  expect_close(layer(value = y, key = z, query = x), keys)
  expect_close(list(x, y, z) |> layer(), keys)

  masked <- reference_attention(layer, x, y, z, mask)
  result <- layer(
    x,
    y,
    z,
    attention_mask = mask,
    return_attention_scores = TRUE
  )
  expect_named(result, c("attention_output", "attention_scores"))
  expect_close(result$attention_output, masked$attention_output)
  expect_close(result$attention_scores, masked$attention_scores)
  expect_close(
    layer(x, y, z, attention_mask = mask + 0),
    masked$attention_output
  )
})

test_that("masks of two axes, causal and padding masks do what their matrices say", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer()
  layer(x)
  wide <- function(mask) aperm(array(mask, c(3, 3, 2, 6)), c(3, 4, 1, 2))
  triangle <- lower.tri(diag(3), diag = TRUE)
  causal <- reference_attention(
    layer,
    x,
    mask = wide(triangle)
  )$attention_output
  expect_close(layer(x, attention_mask = triangle), causal)
  expect_close(layer(x, use_causal_mask = TRUE), causal)

  padding <- rbind(c(TRUE, TRUE, FALSE), TRUE)
  mask <- aperm(array(padding, c(2, 3, 6, 3)), c(1, 3, 4, 2))
  padded <- reference_attention(layer, x, mask = mask)$attention_output
  expect_close(layer(x, value_mask = padding), padded)
  expect_close(layer(x, key_mask = padding), padded)
})

test_that("a query without keys gets the output's bias alone", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer()
  mask <- matrix(TRUE, 3, 3)
  mask[2, ] <- FALSE
  result <- as.array(layer(x, attention_mask = mask))
  expect_equal(
    result[1, 2, ],
    as.array(layer$`_output_dense`$bias),
    ignore_attr = TRUE
  )
})

test_that("every form of the object composes to the same shape", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  y <- numbers(2, 7, 11, seed = 2)
  z <- numbers(2, 7, 11, seed = 3)
  shape <- function(x) {
    unlist(lapply(reticulate::py_to_r(x$shape), \(n) if (is.null(n)) NA else n))
  }
  a <- input(3L, 11L)
  b <- input(7L, 11L)
  expect_equal(shape(attend(a)), c(NA, 3, 11))
  expect_equal(shape(attend(list(a, b))), c(NA, 3, 11))
  expect_equal(shape(attend(list(value = b, query = a))), c(NA, 3, 11))
  expect_equal(shape(attend(a, value = b, key = b)), c(NA, 3, 11))
  expect_equal(dim(as.array(attend(x))), c(2, 3, 11))
  expect_equal(dim(as.array(attend(list(x, y, z)))), c(2, 3, 11))
  expect_equal(
    dim(as.array(attend(keras()$ops$convert_to_tensor(x)))),
    c(2, 3, 11)
  )
  scores <- attend(list(a, b), return_attention_scores = TRUE)
  expect_equal(shape(scores$attention_scores), c(NA, 6, 3, 7))

  model <- keras()$Sequential()
  expect_invisible(attend(model))
  result <- model |> attend(name = "second")
  expect_identical(reticulate::py_id(result), reticulate::py_id(model))
  expect_equal(vapply(model$layers, \(l) l$name, "")[[2]], "second")
  expect_equal(dim(as.array(model(x))), c(2, 3, 11))
})

test_that("call arguments in the pipe reach the call, in functional models too", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  a <- input(3L, 11L)
  mask <- lower.tri(diag(3), diag = TRUE)
  made <- attend(a, attention_mask = mask, name = "here")
  model <- keras()$Model(a, made)
  layer <- model$get_layer("here")
  expect_close(
    model$predict(x, verbose = 0L),
    as.array(layer(x, attention_mask = mask))
  )
  causal <- keras()$Model(a, attend(a, use_causal_mask = TRUE, name = "causal"))
  layer <- causal$get_layer("causal")
  expect_close(causal(x), as.array(layer(x, use_causal_mask = TRUE)))
  expect_gt(max(abs(as.array(causal(x)) - as.array(layer(x)))), 1e-3)
})

test_that("use_causal_mask is kept where the layer is not called", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer(use_causal_mask = TRUE)
  expect_true(layer$get_config()$use_causal_mask)
  expect_close(layer(x), as.array(layer(x, use_causal_mask = TRUE)))
  expect_gt(
    max(abs(as.array(layer(x)) - as.array(layer(x, use_causal_mask = FALSE)))),
    1e-3
  )
  model <- keras()$Sequential() |> attend(use_causal_mask = TRUE)
  expect_true(model$layers[[1]]$get_config()$use_causal_mask)
})

test_that("every constructor argument arrives as the Python type it must have", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- layer_group_query_attention(
    head_dim = 5,
    num_query_heads = 6L,
    num_key_value_heads = 3,
    dropout = 0.25,
    use_bias = FALSE,
    flash_attention = FALSE,
    kernel_initializer = "he_normal",
    bias_initializer = keras()$initializers$Constant(0.5),
    kernel_regularizer = "l2",
    activity_regularizer = list(class_name = "L1", config = list(l1 = 0.5)),
    kernel_constraint = "non_neg",
    seed = 7,
    sliding_window = 2,
    use_gate = TRUE,
    qk_norm = TRUE,
    logit_soft_cap = 30,
    attention_sink = TRUE,
    use_causal_mask = TRUE,
    name = "full",
    trainable = FALSE,
    dtype = "float64"
  )
  config <- layer$get_config()
  json <- reticulate::import("json")
  text <- json$dumps(config[c(
    "head_dim",
    "num_query_heads",
    "num_key_value_heads",
    "dropout",
    "use_bias",
    "flash_attention",
    "seed",
    "sliding_window",
    "use_gate",
    "qk_norm",
    "logit_soft_cap",
    "attention_sink",
    "use_causal_mask",
    "name",
    "trainable"
  )])
  expect_snapshot(cat(text))
  expect_equal(config$bias_initializer$config$value, 0.5)
  expect_equal(layer$compute_dtype, "float64")
  expect_equal(
    as.character(layer(x)$dtype),
    as.character(keras()$ops$zeros(1L, "float64")$dtype)
  )
})

test_that("a layer of float64 keeps the precision of R's numbers", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer(dtype = "float64")
  result <- layer(x)
  # JAX has 32 bits unless it is told otherwise.
  tolerance <- if (keras()$backend$backend() == "jax") 1e-5 else 1e-12
  expect_close(
    result,
    reference_attention(layer, x)$attention_output,
    tolerance
  )
})

test_that("the same array twice is self-attention, also with segments and positions", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer()
  segments <- rbind(c(1, 1, 2), c(1, 2, 2))
  same <- outer(1:3, 1:3, Vectorize(\(i, j) i == j))
  mask <- array(FALSE, c(2, 6, 3, 3))
  for (b in 1:2) {
    for (n in 1:6) {
      mask[b, n, , ] <- outer(segments[b, ], segments[b, ], `==`)
    }
  }
  result <- layer(x, segment_ids = segments)
  expect_close(
    result,
    reference_attention(layer, x, mask = mask)$attention_output
  )
  expect_close(layer(list(x, x), segment_ids = segments), as.array(result))
  shifted <- layer(x, positions = rbind(5:7, 0:2), use_causal_mask = TRUE)
  expect_close(shifted, as.array(layer(x, use_causal_mask = TRUE)))
})

test_that("tokens of a span attend to each other in a causal layer", {
  skip_without_keras()
  x <- numbers(2, 5, 11)
  layer <- new_layer(name = "spans")
  spans <- rbind(c(0, 3, 3, 0, 3), c(1, 1, 0, 2, 2))
  causal <- lower.tri(diag(5), diag = TRUE)
  mask <- array(FALSE, c(2, 6, 5, 5))
  for (b in 1:2) {
    same <- outer(spans[b, ], spans[b, ], `==`) & spans[b, ] > 0
    for (n in 1:6) {
      mask[b, n, , ] <- causal | same
    }
  }
  result <- layer(x, bidirectional = spans, use_causal_mask = TRUE)
  expected <- reference_attention(layer, x, mask = mask)$attention_output
  expect_close(result, expected)

  inputs <- keras()$Input(list(NULL, 11L))
  ids <- keras()$Input(list(NULL), dtype = "int32")
  output <- layer(inputs, bidirectional = ids, use_causal_mask = TRUE)
  model <- keras()$Model(list(inputs, ids), output)
  storage.mode(spans) <- "integer"
  predicted <- model$predict(list(x, spans), verbose = 0L)
  expect_close(predicted, expected)
  expect_snapshot(error = TRUE, {
    layer(list(x, numbers(2, 7, 11)), bidirectional = spans)
  })
})

test_that("errors of Python are one clean condition, and the session goes on", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  layer <- new_layer(name = "mine")
  layer(x)
  expect_snapshot(error = TRUE, {
    layer(numbers(2, 3, 5))
    layer_group_query_attention(
      x,
      5,
      6,
      3,
      kernel_initializer = "glorot_unifrom"
    )
    layer_group_query_attention(x, 5, 6, 3, dtype = "float7")
  })
  expect_equal(dim(as.array(layer(x))), c(2, 3, 11))
})

test_that("the scale is a number or learned for each feature", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  made <- layer(scale = 2L)
  expect_identical(made$get_config()$scale, 2)
  expect_match(format(made), "scale 2")
  made(x)
  expected <- reference_attention(made, x, scale = 2)$attention_output
  expect_close(made(x), expected)
  learned <- layer(scale = "learned")
  learned(x)
  learned$vectors()$scale$assign(1:5 / 2)
  factors <- log(1 + exp(1:5 / 2)) / log(2) / sqrt(5)
  expected <- reference_attention(learned, x, scale = factors)$attention_output
  expect_close(learned(x), expected)
})

test_that("a gate has a number for each result of a head, or one for each head", {
  skip_without_keras()
  x <- numbers(2, 3, 11)
  gate_shape <- function(use_gate) {
    made <- layer(use_gate = use_gate)
    expect_match(format(made), "gate")
    made(x)
    dim(as.array(made$projection("gate")$kernel))
  }
  expect_equal(gate_shape("head"), c(11, 6, 1))
  expect_equal(gate_shape("element"), c(11, 6, 5))
  expect_identical(layer(use_gate = "element")$use_gate, TRUE)
  halved <- layer(use_gate = "head", kernel_initializer = "ones")
  plain <- layer(kernel_initializer = "ones")
  halved(x)
  halved$projection("gate")$kernel$assign(array(0, c(11, 6, 1)))
  expect_close(halved(x), as.array(plain(x)) / 2, tolerance = 1e-3)
})

test_that("a layer uses the keys and values of another one", {
  skip_without_keras()
  first <- new_layer(name = "first")
  second <- layer_group_query_attention(
    head_dim = 5,
    num_query_heads = 3,
    num_key_value_heads = 3,
    bias_initializer = "random_normal",
    key_value_of = first,
    name = "second"
  )
  x <- numbers(2, 3, 11)
  y <- numbers(2, 3, 11, seed = 2)
  output <- second(y, key_value_from = first(x))
  # The same layer with the first one's projections of x.
  whole <- layer_group_query_attention(NULL, 5, 3, 3)
  whole(y, x)
  weights <- function(layer, name) layer$projection(name)$get_weights()
  for (name in c("query", "output")) {
    whole$projection(name)$set_weights(weights(second, name))
  }
  for (name in c("key", "value")) {
    whole$projection(name)$set_weights(weights(first, name))
  }
  expect_close(output, whole(y, x))
  expect_match(format(second), "; keys and values of \"first\"; ", fixed = TRUE)

  # In a model the connection is found.
  inputs <- input(3L, 11L)
  outputs <- second(first(inputs))
  model <- keras()$Model(inputs, outputs)
  middle <- first(x)
  expect_close(model(x), second(middle, key_value_from = middle))
  expect_error(
    layer_group_query_attention(NULL, 5, 6, 3, key_value_of = middle),
    "Give the layer itself"
  )
  expect_snapshot(error = TRUE, {
    layer_group_query_attention(NULL, 5, 6, 3, key_value_of = "first")
    layer_group_query_attention(NULL, 5, 6, 3, key_value_of = x)
    layer_group_query_attention(
      NULL,
      7,
      6,
      3,
      key_value_of = first,
      name = "a"
    )
    second(x)
    second(x, key_value_from = x)
  })
})
