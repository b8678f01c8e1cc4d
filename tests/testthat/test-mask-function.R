test_that("a function returns TRUE or FALSE for each pair", {
  expect_snapshot(error = TRUE, {
    mask_function()
    mask_function(3)
    mask_function(function(q) q)
    mask_function(function(q, k) q - k)
    mask_function(function(q, k) TRUE)
    mask_function(function(q, k) stop("no"))
  })
})

near <- function() {
  function(q, k) (abs(q - k) < 3 | k %% 5L == 0) & !(k > q) & q^2 >= k
}

test_that("a function obeys positions, also where a backend compiles", {
  skip_without_keras()
  x <- numbers(2, 13, 6)
  mask <- mask_function(near())
  layer <- layer_multi_head_attention(num_heads = 2, key_dim = 3, mask = mask)
  result <- layer(x, return_attention_scores = TRUE)
  seen <- visible_pairs(mask, 0:12)
  expect_equal(as.array(result$attention_scores)[1, 1, , ] > 0, seen)
  model <- keras()$Sequential()
  model$add(keras()$Input(reticulate::tuple(13L, 6L)))
  model$add(layer)
  expect_close(model$predict(x, verbose = 0L), result$attention_output, 1e-5)
  at <- matrix(as.integer(c(3:15, 12:0)), 2, byrow = TRUE)
  moved <- layer(x, positions = at, return_attention_scores = TRUE)
  scores <- as.array(moved$attention_scores)
  for (b in 1:2) {
    expect_equal(scores[b, 2, , ] > 0, visible_pairs(mask, at[b, ]))
  }
})

test_that("operators and functions of positions are those of R", {
  skip_without_keras()
  f <- function(q, k) {
    x <- -(q - 7) %/% 2 + sqrt(abs(k)) * 3
    (x %% 4 < 2 & floor(q / 3) != k | !(sign(q - k) >= 0)) & exp(k / 9) > +2
  }
  q <- matrix(0:12, 13, 13)
  k <- t(q)
  ops <- reticulate::import("keras.ops", convert = FALSE)
  symbolic <- lapply(list(q, k), function(x) {
    new_positions(ops$convert_to_tensor(as_tensor(x)))
  })
  found <- do.call(f, symbolic)
  expect_equal(as.array(found$tensor) == 1, f(q, k))
  expect_snapshot(error = TRUE, {
    f <- symbolic[[1]]
    gamma(f)
    f + 1:3
  })
})

test_that("a model with a function is an error in another session that says so", {
  skip_without_keras()
  model <- keras()$Sequential()
  model$add(keras()$Input(reticulate::tuple(13L, 6L)))
  mask <- mask_function(function(q, k) k <= q)
  layer_multi_head_attention(model, num_heads = 2, key_dim = 3, mask = mask)
  file <- withr::local_tempfile(fileext = ".keras")
  model$save(file)
  code <- c(
    "suppressMessages(library(kerasattention))",
    sprintf(
      "model <- reticulate::import('keras')$saving$load_model(%s)",
      deparse(file)
    ),
    "x <- array(0, c(1, 13, 6))",
    "message <- tryCatch(model(x), error = conditionMessage)",
    "cat(grepl('was an R function of another session', message))"
  )
  expect_match(utils::tail(run_r(code), 1), "TRUE")
})

test_that("a model with a function trains, with blocks of queries in its gradient", {
  skip_without_keras()
  x <- numbers(2, 600, 8)
  y <- numbers(2, 600, 1)
  loss <- function(mask) {
    keras()$utils$set_random_seed(3L)
    inputs <- keras()$Input(list(NULL, 8L))
    hidden <- inputs |>
      layer_multi_head_attention(2, 4, mask = mask, logit_soft_cap = 5)
    model <- keras()$Model(inputs, keras()$layers$Dense(1L)(hidden))
    model$compile("adam", "mse")
    unlist(model$fit(x, y, epochs = 2L, verbose = 0L)$history$loss)
  }
  by_function <- loss(mask_function(function(q, k) k <= q & q - k < 300))
  by_rule <- loss(mask_causal() & mask_window(300))
  expect_equal(by_function, by_rule, tolerance = 1e-5)
})
