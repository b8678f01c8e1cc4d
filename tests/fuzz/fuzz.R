# Calls the exported R functions with right and wrong values for every argument. Each call
# must give a result of the right kind or an error of class `kerasattention_error`, in a
# few seconds, without another warning, and what it gives must print.
#
#   Rscript tests/fuzz/fuzz.R seed=1 seconds=60      as many calls as fit in a minute
#   Rscript tests/fuzz/fuzz.R seed=1 calls=20000
#   Rscript tests/fuzz/fuzz.R seed=1 call=17         one call again, which it prints
#
# Each finding is one line that repeats it. Exit status 1 if there was one. Should R
# itself end, the current call is in the file named in the first line.

options <- list(seed = 1, seconds = Inf, calls = Inf, call = NA, slow = 5)
for (argument in strsplit(commandArgs(TRUE), "=")) {
  options[[argument[[1]]]] <- as.numeric(argument[[2]])
}
stopifnot(
  "Arguments: seed=, seconds=, calls=, call=" = length(options) == 5,
  "Say how long: seconds=, calls= or call=" = any(is.finite(unlist(options[
    2:4
  ])))
)

suppressPackageStartupMessages(library(kerasattention))
invisible(reticulate::py_config())
keras <- reticulate::import("keras", convert = FALSE)
np <- reticulate::import("numpy", convert = FALSE)

numbers <- function(...) array(sin(seq_len(prod(...))), c(...))
x <- numbers(2, 5, 8)
tensor <- keras$ops$convert_to_tensor(np$ones(
  reticulate::tuple(2L, 5L, 8L),
  "float32"
))
symbolic <- keras$Input(reticulate::tuple(5L, 8L))
layer <- layer_multi_head_attention(
  num_heads = 2,
  key_dim = 4,
  name = "attention"
)
bare <- layer_multi_head_attention(num_heads = 2, key_dim = 4, use_bias = FALSE)
invisible(bare(x))
model <- keras$Model(symbolic, keras$layers$Dense(1L)(layer(symbolic)))
invisible(model$compile(loss = "mse"))
ids <- keras$Input(reticulate::tuple(NULL), dtype = "int32")
hidden <- layer_multi_head_attention(
  keras$layers$Embedding(11L, 8L)(ids),
  2,
  4,
  use_causal_mask = TRUE
)
token_model <- keras$Model(ids, keras$layers$Dense(11L)(hidden))
decoder <- incremental_decoder(token_model, batch_size = 1, max_length = 64)
scores <- attention_scores(model, x)
importance <- head_importance(model, x, numbers(2, 5, 1))

folder <- dirname(sub(
  "^--file=",
  "",
  grep("^--file=", commandArgs(), value = TRUE)
))
source(file.path(folder, "values.R"))
source(file.path(folder, "functions.R"))
environment_of_calls <- environment()

one_of <- function(x) x[[sample.int(length(x), 1)]]

# A right value, as an expression: one of those in the table's `list()` or `c()`.
right_value <- function(entry) {
  several <- is.call(entry) && as.character(entry[[1]]) %in% c("list", "c")
  if (several) {
    one_of(as.list(entry)[-1])
  } else if (is.call(entry)) {
    one_of(as.list(eval(entry, environment_of_calls)))
  } else {
    entry
  }
}

# Call number i: a function, which of its arguments, and which of these are wrong.
draw_call <- function(i) {
  set.seed(options$seed * 1e6 + i)
  name <- one_of(names(functions))
  arguments <- functions[[name]]$arguments
  required <- startsWith(names(arguments), "*")
  names(arguments) <- sub("*", "", names(arguments), fixed = TRUE)
  if ("object" %in% names(arguments) && stats::runif(1) < 0.95) {
    arguments$inputs <- NULL
    required <- required[seq_along(arguments)]
  }
  few <- stats::runif(length(arguments)) < stats::runif(1) * 0.3
  given <- (required & stats::runif(length(arguments)) < 0.98) | few
  fixed <- seq_len(functions[[name]]$fixed %||% 0)
  given[fixed] <- TRUE
  candidates <- setdiff(seq_along(arguments), fixed)
  wrong <- sample(c(0, 1, 2, 3), 1, prob = c(0.1, 0.55, 0.25, 0.1))
  wrong <- candidates[sample.int(
    length(candidates),
    min(wrong, length(candidates))
  )]
  chosen <- sort(union(which(given), wrong))
  values <- lapply(chosen, function(j) {
    if (j %in% wrong) one_of(hostile) else right_value(arguments[[j]])
  })
  names(values) <- names(arguments)[chosen]
  as.call(c(list(str2lang(quoted(name))), values))
}

`%||%` <- function(a, b) if (is.null(a)) b else a

quoted <- function(name) if (name == "[") "`[`" else name

name_of <- function(call) sub("^`\\[`$", "[", deparse1(call[[1]]))

# NULL, or what is wrong with the call's outcome.
outcome_of <- function(call) {
  eval(functions[[name_of(call)]]$before, environment_of_calls)
  warned <- NULL
  start <- proc.time()
  result <- withCallingHandlers(
    tryCatch(
      list(value = eval(call, environment_of_calls)),
      error = identity,
      interrupt = function(cnd) quit(status = 130)
    ),
    warning = function(cnd) {
      if (!inherits(cnd, "kerasattention_warning")) {
        warned <<- conditionMessage(cnd)
      }
      invokeRestart("muffleWarning")
    },
    message = function(cnd) invokeRestart("muffleMessage")
  )
  used <- sum((proc.time() - start)[c("user.self", "sys.self")])
  wrong <- if (inherits(result, "error")) {
    error_of(result)
  } else {
    value_of(result$value, functions[[name_of(call)]]$result)
  }
  count(
    name_of(call),
    if (inherits(result, "error")) "errors" else "results",
    used
  )
  c(
    wrong,
    if (!is.null(warned)) paste("warning:", warned),
    if (used > options$slow) sprintf("slow: %.1f s of CPU", used)
  )
}

# How often each function gave a result, so that a run of nothing but errors shows.
counts <- matrix(
  0,
  length(functions),
  3,
  dimnames = list(names(functions), c("results", "errors", "seconds"))
)

count <- function(name, outcome, used) {
  counts[name, outcome] <<- counts[name, outcome] + 1
  counts[name, "seconds"] <<- counts[name, "seconds"] + used
}

error_of <- function(cnd) {
  message <- tryCatch(conditionMessage(cnd), error = function(cnd) "")
  if (!inherits(cnd, "kerasattention_error")) {
    paste0("<", class(cnd)[[1]], "> ", message)
  } else if (!nzchar(message)) {
    "an error without a message"
  }
}

value_of <- function(value, is_right) {
  if (!isTRUE(is_right(value))) {
    return(paste("a result of class", class(value)[[1]]))
  }
  printed <- tryCatch(utils::capture.output(print(value)), error = identity)
  if (inherits(printed, "error")) {
    paste("does not print:", conditionMessage(printed))
  }
}

report <- function(i, call, wrong) {
  text <- gsub("\\s+", " ", paste(wrong, collapse = "; "))
  cat(
    sprintf("Rscript tests/fuzz/fuzz.R seed=%d call=%d", options$seed, i),
    "#",
    substr(deparse1(call), 1, 500),
    "->",
    substr(text, 1, 300),
    "\n"
  )
}

run <- function() {
  trace <- tempfile("fuzz-", fileext = ".txt")
  cat("The current call is in", trace, "\n")
  from <- if (is.na(options$call)) 1 else options$call
  to <- if (is.na(options$call)) options$calls else options$call
  end <- Sys.time() + options$seconds
  found <- 0
  i <- from
  while (i <= to && Sys.time() < end) {
    call <- draw_call(i)
    writeLines(c(paste(i), deparse(call)), trace)
    wrong <- outcome_of(call)
    if (length(wrong) > 0 || !is.na(options$call)) {
      report(i, call, if (length(wrong) > 0) wrong else "nothing wrong")
    }
    found <- found + (length(wrong) > 0)
    i <- i + 1
  }
  unlink(trace)
  print(counts)
  cat(sprintf(
    "%d calls, seed %d: %d findings\n",
    i - from,
    options$seed,
    found
  ))
  found
}

quit(status = if (run() > 0) 1 else 0)
