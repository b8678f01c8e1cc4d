#' Turn queries and keys by their positions
#'
#' @description
#' Rotary position embedding (Su et al. 2021), the positions of most language models
#' of today. Pair i of the R features of a head that turn is rotated by the angle
#'
#' \deqn{p \, \theta^{-2i/R}}{p * theta^(-2 i / R)}
#'
#' where p is the position of the token and i = 0, ..., R / 2 - 1, in queries and keys
#' alike: their products then depend on distances alone. Angles are computed in 32-bit
#' floats whatever the layer's `dtype`.
#'
#' Positions are 0, 1, ..., or where a cache stands, or given for each token by the
#' call argument `positions`.
#'
#' @param theta The base of the frequencies.
#' @param fraction The share of each head's features that turn, the first ones; the
#'   rest carry no position. R = `fraction` * H must be even.
#' @param layout Which features make a pair: `"half"` pairs feature i with i + R / 2,
#'   `"interleaved"` the neighbours 2 i and 2 i + 1. Weights fit one of them only.
#' @param scaling `NULL`, or a list that says how a model reaches beyond the length
#'   that it was trained on; see the section Scaling.
#'
#' @section Scaling:
#' The parameters have the names of the published model configs, whose entry
#' `rope_scaling` can be given as it is (`rope_type` is taken for `type`).
#'
#' * `list(type = "linear", factor = 8)`: positions divided by the factor (Chen et
#'   al. 2023).
#' * `list(type = "ntk", factor = 8)`: theta becomes theta * factor^(R / (R - 2)).
#' * `list(type = "yarn", factor = 32, original_max_position_embeddings = 4096)`:
#'   slow pairs divided by the factor, fast ones kept, a ramp between them, and the
#'   logits sharpened by the attention factor, which is 0.1 log(factor) + 1, squared
#'   (Peng et al. 2023). Also takes `attention_factor`, `beta_fast` (32), `beta_slow`
#'   (1), `mscale`, `mscale_all_dim` and `truncate` (TRUE).
#' * `list(type = "llama3", factor = 8)`: as Llama 3.1 does. Also takes
#'   `low_freq_factor` (1), `high_freq_factor` (4) and
#'   `original_max_position_embeddings` (8192).
#'
#' @section Who uses it:
#' * Llama 2, Mistral, Gemma 2: `position_rotary()`
#' * Llama 3: `theta = 500000`; from Llama 3.1 on with the scaling `"llama3"` above
#' * Qwen 3: `theta = 1000000`
#' * Gemma 3: layers with a window as Gemma 2; the others `theta = 1000000`, from 4B on
#'   with `scaling = list(type = "linear", factor = 8)`
#' * GPT-NeoX: `fraction = 0.25`
#' * GPT-J: `fraction = 0.25, layout = "interleaved"`
#' * gpt-oss: `theta = 150000` with the scaling `"yarn"` above and `truncate = FALSE`
#'
#' @returns A position for the argument `position` of the layers.
#'
#' @references
#' Su et al. (2021). RoFormer: Enhanced Transformer with Rotary Position Embedding.
#' \doi{10.48550/arXiv.2104.09864}
#'
#' Chen et al. (2023). Extending Context Window of Large Language Models via Positional
#' Interpolation. \doi{10.48550/arXiv.2306.15595}
#'
#' Peng et al. (2023). YaRN: Efficient Context Window Extension of Large Language
#' Models. \doi{10.48550/arXiv.2309.00071}
#'
#' @seealso [position_alibi()], [position_relative()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_rotary()
#'
#' # Llama 3.1
#' position_rotary(theta = 500000, scaling = list(type = "llama3", factor = 8))
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' x |>
#'   layer_group_query_attention(
#'     head_dim = 8,
#'     num_query_heads = 4,
#'     num_key_value_heads = 2,
#'     position = position_rotary(theta = 500000),
#'     use_causal_mask = TRUE
#'   ) |>
#'   as.array() |>
#'   dim()
position_rotary <- function(
  theta = 10000,
  fraction = 1,
  layout = c("half", "interleaved"),
  scaling = NULL
) {
  check_number(theta, above = 1)
  check_number(fraction, above = 0, max = 1)
  layout <- check_choice(layout, c("half", "interleaved"))
  scaling <- check_scaling(scaling)
  new_position(
    "position_rotary",
    "RotaryPosition",
    theta = as.double(theta),
    fraction = as.double(fraction),
    layout = layout,
    scaling = scaling
  )
}

#' Lower logits by distance
#'
#' @description
#' Attention with linear biases, ALiBi (Press et al. 2022): the logit of a query and a
#' key that are d positions apart is lowered by
#'
#' \deqn{m_h \, |d|}{m_h * |d|}
#'
#' with a fixed slope for each head. For N heads, a power of two, the slopes are
#' \eqn{2^{-8/N}, 2^{-16/N}, \ldots, 2^{-8}}{2^(-8 / N), 2^(-16 / N), ..., 2^(-8)};
#' for any other N those of the power of two below, filled up with every other slope of
#' the power above, as in the authors' code. Without a causal mask keys on both sides of
#' the query are treated alike.
#'
#' @section Who uses it:
#' MPT and BLOOM. (For numbers of heads that are no power of two MPT orders its slopes
#' in another way.)
#'
#' @inherit position_rotary return
#' @references
#' Press et al. (2022). Train Short, Test Long: Attention with Linear Biases Enables
#' Input Length Extrapolation. \doi{10.48550/arXiv.2108.12409}
#'
#' @seealso [position_rotary()], [position_relative()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_alibi()
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' x |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     position = position_alibi(),
#'     use_causal_mask = TRUE
#'   ) |>
#'   as.array() |>
#'   dim()
position_alibi <- function() {
  new_position("position_alibi", "AlibiPosition")
}

#' Learn a bias for each distance
#'
#' @description
#' The relative position biases of T5 (Raffel et al. 2020): each head learns one number
#' for each bucket of distances, which is added to the logits of all pairs at these
#' distances. Of the 2h buckets of a side the first h hold one distance each, and a
#' farther distance d is in bucket
#'
#' \deqn{h + \lfloor h \log(d/h) / \log(m/h) \rfloor}{h + floor(h * log(d / h) / log(m / h))}
#'
#' up to `max_distance` m, from which on all share the last one. Half of `num_buckets`
#' are for the keys behind the query and half for those ahead; with a causal mask all
#' are for the keys behind.
#'
#' The table (`num_buckets`, N) is a weight of the layer. An object given to several
#' layers is one table that they share, as the layers of T5 do; for a table of its own
#' give each layer a `position_relative()` of its own.
#'
#' @param num_buckets The number of buckets, even.
#' @param max_distance The distance from which on all share a bucket; greater than half
#'   of `num_buckets`.
#'
#' @section Who uses it:
#' T5: 32 buckets up to 128, shared by all layers of its encoder and by all of its
#' decoder. T5 does not scale its logits by 1 / sqrt(H): multiply the query kernel of
#' its checkpoints by sqrt(H).
#'
#' @inherit position_rotary return
#' @references
#' Raffel et al. (2020). Exploring the Limits of Transfer Learning with a Unified
#' Text-to-Text Transformer. \doi{10.48550/arXiv.1910.10683}
#'
#' @seealso [position_rotary()], [position_alibi()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_relative()
#'
#' @examplesIf kerasattention:::can_run_examples()
#' # Two layers with one table
#' keras <- reticulate::import("keras")
#' shared <- position_relative()
#' input <- keras$Input(shape = list(5L, 16L))
#' output <- input |>
#'   layer_multi_head_attention(num_heads = 4, key_dim = 8, position = shared) |>
#'   layer_multi_head_attention(num_heads = 4, key_dim = 8, position = shared)
#' length(keras$Model(input, output)$weights)
position_relative <- function(num_buckets = 32, max_distance = 128) {
  check_whole_number(num_buckets, min = 4, max = 2^14)
  if (num_buckets %% 2 != 0) {
    hint <- "Half of the buckets are for the keys behind, half for those ahead."
    abort_argument("num_buckets", "an even number", num_buckets, hint)
  }
  check_whole_number(max_distance, min = 1, max = 2^18)
  if (max_distance <= num_buckets / 2) {
    rule <- paste("greater than half of `num_buckets`,", num_buckets / 2)
    hint <- "So many distances have a bucket of their own."
    abort_argument("max_distance", rule, max_distance, hint)
  }
  new_position(
    "position_relative",
    "RelativePosition",
    num_buckets = as.integer(num_buckets),
    max_distance = as.integer(max_distance),
    shared = TRUE
  )
}

new_position <- function(class, python_class, ..., shared = FALSE) {
  class <- c(class, "kerasattention_position")
  recipe(python_class, ..., class = class, shared = shared)
}

# Scaling -------------------------------------------------------------------------

# The parameters that each type must and may have. Python knows their defaults.
scaling_types <- list(
  linear = list(must = "factor"),
  ntk = list(must = "factor"),
  yarn = list(
    must = c("factor", "original_max_position_embeddings"),
    may = c(
      "attention_factor",
      "beta_fast",
      "beta_slow",
      "mscale",
      "mscale_all_dim",
      "truncate"
    )
  ),
  llama3 = list(
    must = "factor",
    may = c(
      "low_freq_factor",
      "high_freq_factor",
      "original_max_position_embeddings"
    )
  )
)

# The scaling with a `type`, its numbers as Python wants them.
check_scaling <- function(scaling, call = caller_env()) {
  if (is.null(scaling)) {
    return(NULL)
  }
  types <- names(scaling_types)
  quoted <- paste0('"', types, '"')
  if (!is.list(scaling) || is.object(scaling) || any(names2(scaling) == "")) {
    rule <- "a named list with a `type`, or NULL"
    hint <- 'For example `list(type = "linear", factor = 2)`.'
    abort_argument("scaling", rule, scaling, hint, call)
  }
  scaling <- Filter(Negate(is.null), scaling)
  type <- scaling$type %||% scaling$rope_type
  if (!identical(type, scaling$rope_type %||% type)) {
    rule <- paste0("the same as `type`, \"", type, "\"")
    abort_argument("scaling$rope_type", rule, scaling$rope_type, call = call)
  }
  if (!is_string(type) || !type %in% types) {
    rule <- cli::format_inline("{.or {quoted}}")
    abort_argument("scaling$type", rule, type, call = call)
  }
  parameters <- scaling[!names(scaling) %in% c("type", "rope_type")]
  check_scaling_names(parameters, type, call)
  c(type = type, check_scaling_values(parameters, call))
}

check_scaling_names <- function(parameters, type, call) {
  must <- scaling_types[[type]]$must
  known <- c(must, scaling_types[[type]]$may)
  for (name in setdiff(names(parameters), known)) {
    near <- nearest_name(name, known)
    abort(
      paste(
        "{.arg scaling} of type {.val {type}} takes {.arg {known}}, not",
        "{.arg {name}}: got {describe_value(parameters[[name]])}."
      ),
      hint = if (length(near) > 0) paste0("Did you mean `", near, "`?"),
      arg = "scaling",
      call = call
    )
  }
  for (name in setdiff(must, names(parameters))) {
    abort(
      "{.arg scaling} of type {.val {type}} needs {.arg {name}}.",
      hint = "It stands in the model's published config, under `rope_scaling`.",
      arg = "scaling",
      call = call
    )
  }
}

check_scaling_values <- function(parameters, call) {
  for (name in names(parameters)) {
    value <- parameters[[name]]
    arg <- paste0("scaling$", name)
    if (name == "truncate") {
      check_flag(value, arg = arg, call = call)
    } else if (name == "factor") {
      check_number(value, min = 1, arg = arg, call = call)
    } else if (name == "original_max_position_embeddings") {
      check_whole_number(value, min = 1, arg = arg, call = call)
      parameters[[name]] <- as.integer(value)
    } else {
      check_number(value, above = 0, arg = arg, call = call)
    }
  }
  low <- parameters$low_freq_factor %||% 1
  high <- parameters$high_freq_factor %||% 4
  if (low >= high) {
    rule <- paste("greater than `low_freq_factor`,", low)
    abort_argument("scaling$high_freq_factor", rule, high, call = call)
  }
  parameters
}

# Printing ------------------------------------------------------------------------

#' @export
format.kerasattention_position <- function(x, ...) {
  args <- Filter(Negate(is.null), x$args)
  paste0(class(x)[[1]], "(", format_arguments(args), ")")
}

#' @export
print.kerasattention_position <- function(x, ...) {
  cat("<", format(x), ">\n", sep = "")
  invisible(x)
}

# As the user would type it.
format_arguments <- function(args) {
  if (length(args) == 0) {
    return("")
  }
  values <- vapply(args, format_argument, "")
  paste(names(args), "=", values, collapse = ", ")
}

format_argument <- function(x) {
  if (is.list(x)) {
    return(paste0("list(", format_arguments(x), ")"))
  }
  if (is.numeric(x)) {
    return(format(x, digits = 15, scientific = FALSE, trim = TRUE))
  }
  deparse1(x)
}
