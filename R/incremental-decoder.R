#' Decode a model step by step
#'
#' The steps of [generate_tokens()] as functions: they return the logits for the next token
#' after a prompt and after each further token, with a key/value cache. The model is not
#' changed.
#'
#' The cache of a layer has 2 x B x `max_length` x K x H numbers, that of
#' [layer_latent_attention()] B x `max_length` x (`kv_rank` + `rotary_dim`). With `sliding_window = W`
#' it has only the last W positions; where all layers have a window, rows may become longer
#' than `max_length`.
#'
#' The caches hold what the weights of the model made of the tokens. When weights have changed,
#' by training or loading, begin again with `$prefill()`.
#'
#' If the model has custom layers or functions, a run on random tokens and then the logits
#' of a prompt and of the steps after it are compared with full passes of the model: the first
#' steps at once, later ones each time that the number of tokens has doubled. A difference is an
#' error. Rows that become longer than `max_length` are compared up to it.
#'
#' @inheritParams generate_tokens
#' @param batch_size The number of rows, B.
#' @param max_length The maximum number of tokens in a row.
#'
#' @returns An `incremental_decoder`, a list of functions:
#' * `$prefill(tokens, inputs = NULL)` takes prompts, a vector, a matrix (B, T) or a list of
#'   B vectors, and returns logits (B, V) for the next token; `inputs` as in [generate_tokens()];
#' * `$step(tokens, inputs = NULL)` takes the next token of each row, B numbers, or several,
#'   (B, t), and returns logits (B, V). Where an input of the model is the `positions` of
#'   attention layers, `inputs` are the positions of these tokens, of the same shape, greater than
#'   those before. Positions of several axes are (B, axes) or (B, t, axes). Integers may be left
#'   out: they go on by 1 as in [generate_tokens()];
#' * `$reset()` empties the caches;
#' * `$length()` is the number of tokens in each row, `$cache_bytes()` the size of the caches.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' tokens <- keras$Input(reticulate::tuple(NULL), dtype = "int32")
#' output <- keras$layers$Embedding(20L, 16L)(tokens) |>
#'   layer_multi_head_attention(2, 8, use_causal_mask = TRUE)
#' model <- keras$Model(tokens, keras$layers$Dense(20L)(output))
#'
#' decoder <- incremental_decoder(model, batch_size = 1, max_length = 32)
#' logits <- decoder$prefill(c(3, 1, 4))
#' next_token <- which.max(logits) - 1
#' dim(decoder$step(next_token))
#' decoder
incremental_decoder <- function(model, batch_size, max_length) {
  check_required(model)
  check_required(batch_size)
  check_required(max_length)
  check_model(model)
  check_whole_number(batch_size, min = 1, max = most_rows)
  check_whole_number(max_length, min = 1, max = longest_row)
  decoder <- call_python(
    "IncrementalDecoder",
    model,
    as_int(batch_size),
    as_int(max_length),
    doing = "decode this model"
  )
  structure(
    list(
      prefill = function(tokens, inputs = NULL) {
        check_required(tokens)
        check_prompts(tokens)
        check_other_inputs(inputs)
        logits_of(
          decoder$prefill(as_prompts(tokens), as_other_inputs(inputs)),
          "take the prompts"
        )
      },
      step = function(tokens, inputs = NULL) {
        check_required(tokens)
        check_step(tokens)
        check_other_inputs(inputs)
        logits_of(
          decoder$step(
            as_step(tokens, batch_size),
            as_step_inputs(inputs, batch_size)
          ),
          "take the tokens"
        )
      },
      reset = function() {
        decoder$reset()
        invisible()
      },
      length = function() decoder$length,
      cache_bytes = function() decoder$cache_bytes
    ),
    class = "incremental_decoder"
  )
}

# `logits` is a promise, evaluated here, so that Python's errors become ours.
logits_of <- function(logits, doing, call = caller_env()) {
  as.array(with_python(logits, doing, call))
}

# Vectors and matrices: only prompts can have rows of different lengths.
check_step <- function(
  tokens,
  arg = caller_arg(tokens),
  call = caller_env()
) {
  if (is.list(tokens)) {
    rule <- "token ids: a number for each row, or a matrix (B, t)"
    abort_argument(arg, rule, tokens, call = call)
  }
  check_prompts(tokens, arg = arg, call = call)
}

# B numbers are one token for each row.
as_step <- function(tokens, batch_size) {
  if (is_python(tokens)) {
    return(tokens)
  }
  if (is.null(dim(tokens)) && batch_size == 1 && length(tokens) > 1) {
    tokens <- matrix(tokens, 1)
  }
  as_ids(tokens)
}

# B numbers are one for each row, as for the tokens.
as_step_inputs <- function(inputs, batch_size) {
  if (is_plain_list(inputs)) {
    return(lapply(inputs, as_step_inputs, batch_size))
  }
  if (!is.null(inputs) && !is_python(inputs) && axes_of(inputs) == 1) {
    inputs <- matrix(inputs, batch_size)
  }
  as_other_inputs(inputs)
}

#' @export
print.incremental_decoder <- function(x, ...) {
  cat(sprintf(
    "<incremental_decoder> with %d tokens so far, caches of %s\n",
    x$length(),
    format(structure(x$cache_bytes(), class = "object_size"), units = "auto")
  ))
  invisible(x)
}
