#' Load the weights of a checkpoint into a layer
#'
#' Sets the weights of an attention layer's projections from the matrices of a published
#' model. Read the file with its own library (safetensors, gguf); this function checks every
#' shape and reshapes the matrices to the kernels of Keras. If any shape is wrong, nothing is
#' changed.
#'
#' @param layer A built layer, made by [layer_group_query_attention()] or
#'   [layer_multi_head_attention()]: one that was called, or `model$get_layer(name)`.
#' @param query A matrix (N * H, D), a row for each output and a column for each input, as
#'   torch stores a `Linear`; or `list(matrix, bias)` with a bias of length N * H.
#' @param key,value Matrices (K * H, D), or lists with a bias of length K * H; `NULL` for a layer
#'   with `key_value_of`, `value` for one with `use_key_as_value`.
#' @param output A matrix (D, N * H), or a list with a bias of length D.
#' @param ... Not used.
#' @param gate A matrix (N * H, D), for a layer with `use_gate = TRUE`; (N, D) for one with
#'   `use_gate = "head"`.
#' @param query_norm,key_norm The scales of the norms, for a layer with `qk_norm`: vectors of
#'   length H, or N * H (for keys K * H) where each head has a scale; or lists of a scale and a
#'   bias.
#' @param sink A vector of length N, for a layer with `attention_sink = TRUE`.
#' @param scale A vector of length H, for a layer with `scale = "learned"`.
#' @param undo_permutation Whether query and key come from a GGUF file of a Llama model.
#'   llama.cpp stores their rows interleaved; [position_rotary()] with `layout = "half"`
#'   needs the original order.
#'
#' @returns `layer`, invisibly.
#' @seealso [enable_lora()] to fine-tune the model.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' layer <- layer_group_query_attention(
#'   head_dim = 4, num_query_heads = 6, num_key_value_heads = 2, use_bias = FALSE
#' )
#' x <- array(rnorm(5 * 24), c(1, 5, 24))
#' invisible(layer(x))
#' load_projections(
#'   layer,
#'   query = matrix(rnorm(24 * 24), 24, 24),
#'   key = matrix(rnorm(8 * 24), 8, 24),
#'   value = matrix(rnorm(8 * 24), 8, 24),
#'   output = matrix(rnorm(24 * 24), 24, 24)
#' )
load_projections <- function(
  layer,
  query,
  key,
  value,
  output,
  ...,
  gate = NULL,
  query_norm = NULL,
  key_norm = NULL,
  sink = NULL,
  scale = NULL,
  undo_permutation = FALSE
) {
  known <- c(
    "gate",
    "query_norm",
    "key_norm",
    "sink",
    "scale",
    "undo_permutation"
  )
  check_dots(list(...), known)
  check_required(layer)
  check_layer(layer)
  check_required(query)
  check_required(key)
  check_required(value)
  check_required(output)
  matrices <- list(
    query = query,
    key = key,
    value = value,
    output = output,
    gate = gate
  )
  for (name in names(matrices)) {
    optional <- name == "gate" ||
      name %in% c("key", "value") && !is.null(layer$key_value_of) ||
      name == "value" && layer$use_key_as_value
    check_matrix(matrices[[name]], name, null = optional)
  }
  vectors <- list(
    query_norm = query_norm,
    key_norm = key_norm,
    sink = sink,
    scale = scale
  )
  for (name in names(vectors)) {
    check_vector(vectors[[name]], name, pair = grepl("_norm$", name))
  }
  check_flag(undo_permutation)
  arguments <- lapply(c(matrices, vectors), as_matrices)
  with_arguments <- c(list("load_projections", layer), arguments)
  do.call(
    call_python,
    c(
      with_arguments,
      undo_permutation = undo_permutation,
      doing = "load the projections",
      call = rlang::current_env()
    )
  )
  invisible(layer)
}

# A matrix, or a list of a matrix and its bias.
check_matrix <- function(x, arg, null = FALSE, call = caller_env()) {
  if (!is_plain_list(x)) {
    return(check_array(x, axes = 2, null = null, arg = arg, call = call))
  }
  if (length(x) != 2) {
    abort_argument(
      arg,
      "a matrix, or a list of a matrix and its bias",
      x,
      call = call
    )
  }
  check_array(x[[1]], axes = 2, arg = paste0(arg, "[[1]]"), call = call)
  check_array(x[[2]], axes = 1, arg = paste0(arg, "[[2]]"), call = call)
}

# The vector of a norm or a sink; of a norm also a list of scale and bias.
check_vector <- function(x, arg, pair, call = caller_env()) {
  if (!pair || !is_plain_list(x)) {
    return(check_array(x, axes = 1, null = TRUE, arg = arg, call = call))
  }
  if (length(x) != 2) {
    rule <- "a vector, or a list of a scale and its bias"
    abort_argument(arg, rule, x, call = call)
  }
  for (i in 1:2) {
    at <- paste0(arg, "[[", i, "]]")
    check_array(x[[i]], axes = 1, arg = at, call = call)
  }
}

as_matrices <- function(x) {
  if (is_plain_list(x)) unname(lapply(x, as_tensor)) else as_tensor(x)
}
