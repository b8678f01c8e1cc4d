#' Scale queries by their position
#'
#' @description
#' The longer the context, the more keys share the attention of a query. A factor of the queries
#' that grows with their position makes up for it, beyond the length that a model was trained
#' on. It is for the argument `query_scale` of the layers.
#'
#' @details
#' With p the position of a query, counted from 0, its factor is
#'
#' * `"llama4"`: `1 + attn_scale * log(1 + floor((p + offset) / floor_scale))`, as in Llama 4
#'   and, with `offset = 0`, Ministral 3 (there `llama_4_scaling_beta` and
#'   `original_max_position_embeddings`);
#' * `"log"`: `log(p + 1) / log(length)`, and 1 up to that length: log-n scaling, as in Qwen.
#'
#' Positions are those of the call, or continue from a cache. Queries before position 0 have the
#' factor of position 0.
#'
#' @param type `"llama4"` or `"log"`.
#' @param ... Not used.
#' @param attn_scale Of `"llama4"`: how much the factor grows; 0.1 by default.
#' @param floor_scale Of `"llama4"`: the number of positions between two steps; 8192 by default.
#' @param offset Of `"llama4"`: added to the position; 1 by default.
#' @param length Of `"log"`: the length of the training sequences.
#'
#' @returns An object for the argument `query_scale` of the layers.
#'
#' @references
#' Nakanishi (2025). Scalable-Softmax Is Superior for Attention.
#' \doi{10.48550/arXiv.2501.19399}
#'
#' Chiang and Cholak (2022). Overcoming a Theoretical Limitation of Self-Attention.
#' \doi{10.48550/arXiv.2202.12172}
#'
#' @seealso [layer_group_query_attention()], [position_rotary()]
#' @export
#' @examples
#' scale_by_position()
#'
#' # Ministral 3
#' scale_by_position(floor_scale = 16384, offset = 0)
#'
#' scale_by_position("log", length = 2048)
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' x |>
#'   layer_group_query_attention(
#'     head_dim = 8,
#'     num_query_heads = 4,
#'     num_key_value_heads = 2,
#'     query_scale = scale_by_position("log", length = 3),
#'     use_causal_mask = TRUE
#'   ) |>
#'   as.array() |>
#'   dim()
scale_by_position <- function(
  type = c("llama4", "log"),
  ...,
  attn_scale = NULL,
  floor_scale = NULL,
  offset = NULL,
  length = NULL
) {
  check_dots(list(...), c("attn_scale", "floor_scale", "offset", "length"))
  type <- check_choice(type, c("llama4", "log"))
  check_number(attn_scale, min = 0, max = 1e9, null = TRUE)
  check_number(floor_scale, min = 1e-6, max = 1e9, null = TRUE)
  check_number(offset, min = 0, max = 1e9, null = TRUE)
  check_number(length, above = 1, max = 1e9, null = TRUE)
  given <- list(
    attn_scale = attn_scale,
    floor_scale = floor_scale,
    offset = offset,
    length = length
  )
  given <- Filter(Negate(is.null), given)
  check_scale_entries(names(given), type)
  args <- c(list(type = type), lapply(given, as.double))
  made <- c(list("ScaleByPosition"), args, class = "kerasattention_query_scale")
  do.call(new_constructor, made)
}

check_scale_entries <- function(given, type, call = caller_env()) {
  known <- if (type == "log") {
    "length"
  } else {
    c("attn_scale", "floor_scale", "offset")
  }
  for (name in setdiff(given, known)) {
    abort(
      "A scale of type {.val {type}} takes {.arg {known}}, not {.arg {name}}.",
      arg = name,
      call = call
    )
  }
  if (type == "log" && !"length" %in% given) {
    abort(
      "A scale of type {.val {type}} needs {.arg length}.",
      hint = "It is the length of the sequences that the model was trained on.",
      arg = "length",
      call = call
    )
  }
}

# For the argument `query_scale` of the layers.
check_query_scale <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_alive(x, arg = arg, call = call)
  ours <- inherits(x, "kerasattention_query_scale") && is_constructor(x)
  if (is.null(x) || is_python(x) || ours) {
    return(invisible(x))
  }
  hint <- if (is.function(x)) "Call the function: `scale_by_position()`."
  abort_argument(arg, "a `scale_by_position()` object, or NULL", x, hint, call)
}

#' @export
format.kerasattention_query_scale <- function(x, ...) {
  paste0("scale_by_position(", format_arguments(x$args), ")")
}

#' @export
print.kerasattention_query_scale <- function(x, ...) {
  cat("<", format(x), ">\n", sep = "")
  invisible(x)
}
