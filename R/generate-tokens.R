#' Generate tokens with a KV cache
#'
#' Continues prompts, one token at a time. A key/value cache stores the keys and values of
#' earlier tokens, so that each step computes one position instead of all of them.
#'
#' The model is any Functional or Sequential model whose attention is causal and whose other
#' layers act on each position independently. It is not changed. For other models the error
#' names the layer and the reason.
#'
#' Prompts of different lengths are padded on the left and the padding is masked out: each is
#' continued as it would be in its own call. The step is compiled once for each shape. Where an
#' embedding masks token 0 (`mask_zero`), a 0 that the model generates is padding as well: later
#' tokens do not see it.
#'
#' If the model has custom layers or functions, a run on random tokens and then all tokens of
#' each call are compared with full passes of the model, about two passes over all tokens; a
#' difference is an error. `callback` may have received tokens before that.
#'
#' @param model A model from token ids (B, T) to logits (B, T, V).
#' @param tokens Prompts of whole numbers from 0: a vector, a matrix (B, T), or a list of
#'   vectors of different lengths.
#' @param max_new_tokens The maximum number of tokens to add.
#' @param temperature 0 takes the most likely token; otherwise the logits are divided by
#'   `temperature` and a token is drawn.
#' @param top_k `NULL`, or a number: only the `top_k` most likely tokens are drawn from.
#' @param top_p `NULL`, or a probability: only the most likely tokens that together have
#'   this probability are drawn from (Holtzman et al. 2020,
#'   <https://arxiv.org/abs/1904.09751>).
#' @param stop_token `NULL`, or token ids that end a row. The rest of the row of a matrix is
#'   filled with the id that ended it.
#' @param seed A whole number; the same seed gives the same tokens. By default a number
#'   drawn in R, so that [set.seed()] makes a run repeatable.
#' @param ... Not used.
#' @param num_return_sequences The number of continuations of each prompt. Those of one
#'   prompt are consecutive rows of the result.
#' @param inputs Further inputs of the model, for instance an encoder's: a list by name or
#'   in order. A vector is the input of one row. An input that is the `segment_ids` or
#'   `bidirectional` of the attention layers has a number for each token of the prompts, (B, T),
#'   and 0 for the padding on the left of shorter ones. New tokens are in the segment of the last
#'   token of their row, and in no span of `bidirectional`. An input that is the `positions` is
#'   (B, T), or (B, T, axes) for a [position_rotary()] with `sections`; see `position_step`.
#' @param position_step The distance from the position of a new token to the next, where an input
#'   of the model is the `positions` of its attention layers. The first new token is so far behind
#'   the largest position of its row (of its last segment, where the model has `segment_ids`);
#'   with several axes all axes go on behind the largest of all, as in Qwen2-VL. `NULL` is 1 for
#'   an input of integers, and an error for one of real numbers, such as times: set the distance,
#'   or give each position to the `$step()` of an [incremental_decoder()].
#' @param callback A function that is called with the new token ids (B) after each step;
#'   if it returns `FALSE`, the generation ends.
#' @param progress Whether to show a progress bar; `NULL` shows one for long runs.
#'
#' @returns The prompts with their continuations, as integers: a vector for a vector, a
#'   matrix (B, T + new) for a matrix, a list of vectors for a list.
#' @seealso [incremental_decoder()] to decode step by step.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' tokens <- keras$Input(reticulate::tuple(NULL), dtype = "int32")
#' output <- keras$layers$Embedding(20L, 16L)(tokens) |>
#'   layer_multi_head_attention(2, 8, position = position_rotary(), use_causal_mask = TRUE)
#' model <- keras$Model(tokens, keras$layers$Dense(20L)(output))
#'
#' generate_tokens(model, c(3, 1, 4), max_new_tokens = 5)
#' generate_tokens(model, list(c(3, 1, 4), 15), max_new_tokens = 5, temperature = 1, seed = 1)
#'
#' # Positions of the prompt that an input of the model holds; new tokens have 8, 9 and 10.
#' positions <- keras$Input(reticulate::tuple(NULL), dtype = "int32")
#' output <- keras$layers$Embedding(20L, 16L)(tokens) |>
#'   layer_multi_head_attention(
#'     2, 8, position = position_rotary(), positions = positions, use_causal_mask = TRUE
#'   )
#' model <- keras$Model(list(positions, tokens), keras$layers$Dense(20L)(output))
#' generate_tokens(model, c(3, 1, 4), max_new_tokens = 3, inputs = c(0, 3, 7))
generate_tokens <- function(
  model,
  tokens,
  max_new_tokens,
  temperature = 0,
  top_k = NULL,
  top_p = NULL,
  stop_token = NULL,
  seed = NULL,
  ...,
  num_return_sequences = 1,
  inputs = NULL,
  position_step = NULL,
  callback = NULL,
  progress = NULL
) {
  known <- c(
    "num_return_sequences",
    "inputs",
    "position_step",
    "callback",
    "progress"
  )
  check_dots(list(...), known)
  check_required(model)
  check_required(tokens)
  check_required(max_new_tokens)
  check_model(model)
  check_prompts(tokens)
  check_whole_number(max_new_tokens, min = 1, max = longest_row)
  check_number(temperature, min = 0)
  check_whole_number(top_k, min = 1, null = TRUE)
  check_number(top_p, above = 0, max = 1, null = TRUE)
  check_whole_numbers(stop_token, min = 0, null = TRUE)
  check_whole_number(seed, min = 0, null = TRUE)
  check_whole_number(num_return_sequences, min = 1, max = most_rows)
  check_other_inputs(inputs)
  check_number(position_step, above = 0, null = TRUE)
  check_callback(callback)
  check_flag(progress, null = TRUE)
  warn_unused(temperature, list(top_k = top_k, top_p = top_p))
  made <- call_python(
    "generate",
    model,
    as_prompts(tokens),
    as_int(max_new_tokens),
    temperature = as.double(temperature),
    top_k = as_int(top_k),
    top_p = top_p,
    stop_token = as_ints(stop_token),
    seed = as_int(if (temperature > 0) seed %||% draw_seed() else seed),
    num_return_sequences = as_int(num_return_sequences),
    inputs = as_other_inputs(inputs),
    position_step = position_step,
    callback = callback,
    progress = progress,
    doing = "generate tokens"
  )
  if (is.list(made)) lapply(made, as.integer) else made_like(made)
}

# At temperature 0 nothing is drawn.
warn_unused <- function(temperature, options, call = caller_env()) {
  given <- names(options)[!vapply(options, is.null, NA)]
  if (temperature == 0 && length(given) > 0) {
    rlang::warn(
      c(
        paste0(
          "`",
          given[[1]],
          "` has no effect at `temperature = 0`, which takes the most likely token."
        ),
        i = "To draw tokens, set `temperature = 1`."
      ),
      class = "kerasattention_warning",
      call = call
    )
  }
}

# reticulate gives an array of one axis for a vector.
made_like <- function(made) {
  if (length(dim(made)) == 1) as.integer(made) else made
}

check_callback <- function(
  callback,
  arg = caller_arg(callback),
  call = caller_env()
) {
  check_alive(callback, arg = arg, call = call)
  if (!is.null(callback) && !is.function(callback)) {
    abort_argument(
      arg,
      "a function of the new token ids, or NULL",
      callback,
      call = call
    )
  }
  invisible(callback)
}
