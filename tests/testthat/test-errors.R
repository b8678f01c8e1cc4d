test_that("braces and percent signs in values and hints are no code", {
  f <- function(x) abort_argument("x", "good", x, hint = "Not {x}, 100%.")
  expect_snapshot(error = TRUE, f("{stop('no')}"))
})

test_that("Python's message loses colours, advice, arguments and traceback", {
  expect_equal(
    python_message(paste0(
      "ValueError: Exception encountered when calling Layer.call().\n\n",
      "\033[1mCannot convert '(4.0)' to a shape.\033[0m\n\n",
      "Arguments received by Layer.call():\n  - x=[[1, 2]]\n",
      "Run `reticulate::py_last_error()` for details."
    )),
    "ValueError: Cannot convert '(4.0)' to a shape."
  )
  expect_equal(
    python_message(
      "KeyError: 'a'\n\n\nTraceback (most recent call last):\n  File"
    ),
    "KeyError: 'a'"
  )
  expect_equal(
    python_message(paste0(
      "tensorflow.python.framework.errors_impl.InvalidArgumentError: ",
      "Exception encountered when calling Layer.call().\n\n",
      "cannot compute AddV2: a float [Op:AddV2]"
    )),
    "InvalidArgumentError: cannot compute AddV2: a float [Op:AddV2]"
  )
  expect_equal(nchar(python_message(strrep("x", 9999))), 2004)
})

test_that("an exception of Python is one condition of our class", {
  skip_without_keras()
  f <- function() {
    with_python(keras()$layers$Dense(-3L), "make a layer", environment())
  }
  expect_snapshot(error = TRUE, f())
  cnd <- tryCatch(f(), error = identity)
  expect_s3_class(cnd, "kerasattention_error")
  expect_equal(cnd$python_class, "ValueError")
  expect_match(cnd$python_message, "units=-3")
  expect_null(cnd$parent)
})

test_that("errors of R become ours once, and keep what they were", {
  f <- function(code) with_python(code, "do it", environment())
  expect_snapshot(error = TRUE, f(stop("of R")))
  cnd <- tryCatch(f(stop("of R")), error = identity)
  expect_s3_class(cnd, "kerasattention_error")
  expect_s3_class(cnd$r_error, "simpleError")
  expect_snapshot(error = TRUE, f(abort_argument("x", "good", 1)))
  expect_equal(f(1 + 1), 2)
})

test_that("a KeyboardInterrupt is R's interrupt, also inside another exception", {
  skip_without_keras()
  python <- reticulate::py_run_string(
    paste(
      "def stop(): raise KeyboardInterrupt",
      "def wrap():",
      "    try: raise KeyboardInterrupt",
      "    except KeyboardInterrupt as error:",
      "        raise RuntimeError('the step was cancelled') from error",
      "def leave(): raise SystemExit(3)",
      sep = "\n"
    ),
    local = TRUE,
    convert = FALSE
  )
  ends_as <- function(name) {
    tryCatch(
      with_python(python[[name]](), "run"),
      interrupt = function(cnd) "interrupt",
      kerasattention_error = function(cnd) cnd$python_class
    )
  }
  expect_equal(ends_as("stop"), "interrupt")
  expect_equal(ends_as("wrap"), "interrupt")
  expect_equal(ends_as("leave"), "SystemExit")
})

test_that("SIGINT is an interrupt condition, and the model stays usable", {
  skip_without_keras()
  skip_on_os("windows")
  code <- quote({
    library(kerasattention)
    keras <- reticulate::import("keras")
    tokens <- matrix(0:11, 4)
    inputs <- keras$Input(list(NULL), dtype = "int32")
    hidden <- layer_group_query_attention(
      keras$layers$Embedding(13L, 8L)(inputs),
      head_dim = 4,
      num_query_heads = 4,
      num_key_value_heads = 2,
      use_causal_mask = TRUE
    )
    model <- keras$Model(inputs, keras$layers$Dense(13L, "softmax")(hidden))
    calls <- list(
      generate = function() generate_tokens(model, tokens[1, ], 9),
      scores = function() attention_scores(model, tokens)
    )
    for (name in names(calls)) {
      calls[[name]]()
      system(paste("(sleep 0.4; kill -INT", Sys.getpid(), ") &"))
      end <- Sys.time() + 20
      ended <- tryCatch(
        while (Sys.time() < end) {
          calls[[name]]()
        },
        interrupt = function(cnd) "interrupt",
        error = function(cnd) class(cnd)[[1]]
      )
      probabilities <- as.array(model$predict(tokens, verbose = 0L))
      usable <- all(abs(rowSums(probabilities, dims = 2) - 1) < 1e-4)
      cat(name, ended, usable, "\n")
    }
  })
  printed <- run_r(deparse(code))
  expect_equal(
    trimws(printed),
    c("generate interrupt TRUE", "scores interrupt TRUE")
  )
})

test_that("a backtrace ends with the user's call", {
  user <- function() {
    layer_multi_head_attention(numbers(2, 3, 5), 2, dropout = 3)
  }
  last_call <- function(expr) {
    cnd <- rlang::catch_cnd(expr, "kerasattention_error")
    calls <- cnd$trace$call
    rlang::call_name(calls[[length(calls)]])
  }
  expect_equal(last_call(user()), "layer_multi_head_attention")
  skip_without_keras()
  layer <- layer_multi_head_attention(num_heads = 2, key_dim = 3)
  python <- function() {
    with_python(keras()$layers$Dense(-3L), "do it", rlang::current_env())
  }
  expect_equal(last_call(python()), "python")
})

test_that("Python's lists and constants in a message become R's", {
  expect_equal(as_r_syntax("one of ['a', 'b c']."), "one of \"a\", \"b c\".")
  expect_equal(as_r_syntax("Received: [2, 1], 3"), "Received: 2, 1, 3")
  expect_equal(as_r_syntax("`x=True`, `y=None`"), "`x = TRUE`, `y = NULL`")
  for (text in c("[Op:AddV2]", "x=[[1, 2]]", "'a' of [B, T]", "a[1]")) {
    expect_equal(as_r_syntax(text), text)
  }
})
