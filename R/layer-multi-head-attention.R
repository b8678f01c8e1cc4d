#' Multi-head attention layer
#'
#' @description
#' Multi-head attention (Vaswani et al. 2017): each of N heads projects query, key
#' and value, and averages the values with the softmax of the scaled products of query
#' and keys as weights. An output projection combines the results of all heads.
#'
#' The layer replaces `keras3::layer_multi_head_attention()`: it has the same arguments
#' and weights, and gives the same numbers. `inputs =` is another name of `object`, as
#' in keras3.
#'
#' @inheritSection shapes Shapes
#' @inheritSection shapes Masks
#' @inheritSection shapes R functions
#' @inheritSection layer_group_query_attention Norms
#' @inheritSection layer_group_query_attention Positions
#' @inheritSection layer_group_query_attention Errors
#'
#' @inheritParams layer_group_query_attention
#' @param num_heads N, the number of heads.
#' @param key_dim H, the size of each query and key head.
#' @param value_dim The size of each value head; `NULL` is `key_dim`.
#' @param output_shape Sizes of the output's last axes, one or several whole numbers;
#'   `NULL` is D of the query.
#' @param attention_axes The axes over which attention is computed, for inputs with
#'   more than three axes; `NULL` means all axes between the batch and the features.
#'   They count as in Python and keras3: 0 is the batch axis, 1 the first axis after it,
#'   -1 the features. With `attention_axes = 2` each row of (B, rows, columns, D) attends
#'   to its own columns.
#'
#' @returns Depends on `object`: the layer; a tensor (B, T, D), or with `output_shape`
#'   (B, T, `output_shape`); with `return_attention_scores = TRUE` the list
#'   `list(attention_output =, attention_scores =)` of this tensor and (B, N, T, S); or
#'   the Sequential model, invisibly.
#'
#' @references
#' Vaswani et al. (2017). Attention Is All You Need.
#' \doi{10.48550/arXiv.1706.03762}
#'
#' For the papers of the options see [layer_group_query_attention()].
#'
#' @seealso [layer_group_query_attention()], [attention_sitrep()]
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#'
#' # Cross-attention in a model: T = 7 queries attend to S = 11 keys.
#' target <- keras$Input(shape = list(7L, 16L))
#' source <- keras$Input(shape = list(11L, 24L))
#' output <- list(query = target, value = source) |>
#'   layer_multi_head_attention(num_heads = 4, key_dim = 8)
#' output$shape
#'
#' # Self-attention on an R array, B = 2, T = 5, D = 16.
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' dim(as.array(layer_multi_head_attention(x, num_heads = 4, key_dim = 8)))
#'
#' # In a Sequential model the layer keeps the causal mask.
#' model <- keras$Sequential() |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     use_causal_mask = TRUE
#'   )
#' dim(as.array(model(x)))
#'
#' # Attention over the columns of images, (B, rows, columns, D): axis 2, counted from 0.
#' images <- array(rnorm(2 * 3 * 4 * 16), c(2, 3, 4, 16))
#' columns <- images |>
#'   layer_multi_head_attention(num_heads = 4, key_dim = 8, attention_axes = 2)
#' dim(as.array(columns))
layer_multi_head_attention <- function(
  object,
  num_heads,
  key_dim,
  value_dim = NULL,
  dropout = 0,
  use_bias = TRUE,
  output_shape = NULL,
  attention_axes = NULL,
  flash_attention = NULL,
  kernel_initializer = "glorot_uniform",
  bias_initializer = "zeros",
  kernel_regularizer = NULL,
  bias_regularizer = NULL,
  activity_regularizer = NULL,
  kernel_constraint = NULL,
  bias_constraint = NULL,
  seed = NULL,
  ...,
  value = NULL,
  key = NULL,
  sliding_window = NULL,
  use_gate = FALSE,
  position = NULL,
  qk_norm = FALSE,
  logit_soft_cap = NULL,
  attention_sink = FALSE,
  value_norm = FALSE,
  use_key_as_value = FALSE,
  scale = NULL,
  query_scale = NULL,
  key_value_of = NULL,
  mask = NULL,
  attention_mask = NULL,
  attention_bias = NULL,
  segment_ids = NULL,
  positions = NULL,
  bidirectional = NULL,
  use_causal_mask = FALSE,
  return_attention_scores = FALSE,
  training = NULL,
  key_value_from = NULL
) {
  if ("inputs" %in% names(substitute(list(...)))) {
    return(call_with_inputs(sys.call(), parent.frame()))
  }
  check_layer_dots(list(...))
  object <- if (missing(object)) NULL else object
  hint <- sizes_hint(object, "num_heads", "key_dim")
  check_required(num_heads, hint)
  check_required(key_dim, hint)
  arguments <- layer_arguments(environment(), list(...))
  check_layer_arguments(arguments)
  check_width(num_heads, key_dim, c("num_heads", "key_dim"))
  check_width(num_heads, value_dim, c("num_heads", "value_dim"))
  check_attention_axes(attention_axes)
  inputs <- check_inputs(object, value, key)
  axes <- c(least_axes(attention_axes), Inf)
  check_call(inputs, arguments, axes, heads = num_heads)

  compose("MultiHeadAttention", object, inputs, arguments)
}

# `inputs` is keras3's name of the first argument. It is renamed in the call, and not taken
# from `...`, so that the other arguments keep their positions.
call_with_inputs <- function(call, env, env_call = caller_env()) {
  call[[1]] <- base::list
  arguments <- eval(call, env)
  if ("object" %in% names(arguments)) {
    abort(
      "{.arg object} and {.arg inputs} are two names of one argument: give one.",
      arg = "inputs",
      call = env_call
    )
  }
  names(arguments)[names(arguments) == "inputs"] <- "object"
  do.call(layer_multi_head_attention, arguments, quote = TRUE)
}

# R/layer-arguments.R has checked that the axes are whole numbers.
check_attention_axes <- function(attention_axes, call = caller_env()) {
  axes <- unlist(attention_axes)
  if (any(axes %in% c(0, -1)) || anyDuplicated(axes)) {
    rule <- "different axes between the batch axis (0) and the features (-1)"
    abort_argument("attention_axes", rule, attention_axes, axes_hint, call)
  }
}

# The smallest number of axes of an input whose attention axes are between batch and features.
least_axes <- function(attention_axes) {
  axes <- unlist(attention_axes)
  max(3, axes + 2, 1 - axes)
}
