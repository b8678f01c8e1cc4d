#' Split attention heads and sequences over devices
#'
#' A distribution of Keras that splits the heads of all attention layers, ours and Keras's, over
#' `model` devices, sequences over `seq`, and batches over the rest. It needs the JAX backend.
#'
#' ```r
#' d <- head_parallel(model = 8)
#' with_distribution(d, { model <- build(); model$fit(x, y) })
#' sharding_report(model)
#' ```
#'
#' The devices form a mesh with the axes `"batch"`, `"seq"`, `"model_kv"` and `"model_rep"`. The
#' last two are the `model` devices, in a shape in which key/value heads can be split even if there
#' are fewer of them than devices. A number of devices that would need heads of other devices in
#' each step is an error, at the latest when the model is built; the error says which number can be
#' used.
#'
#' Weights for which there is no rule are whole on each device: norms, embeddings and `Dense` layers,
#' unless `mlp` or `rules` says how to split them. [sharding_report()] shows all weights.
#'
#' # Long sequences
#'
#' With `seq = 8` each device has an eighth of the tokens of each sequence, and of all activations.
#' Our attention layers compute ring attention (Liu et al. 2023,
#' <https://arxiv.org/abs/2310.01889>): keys and values of the K heads travel round the devices,
#' `seq - 1` times, or less often with a `sliding_window`. The numbers are those of one device, with
#' dropout too. Blocks that are masked out by position are not computed; with a causal mask the
#' devices of the last tokens compute the most, and the others wait for them.
#'
#' The length T must be a multiple of `seq`: pad sequences and mask the padding. Axis 1 of all
#' data whose size is a multiple of `seq` counts as tokens. Errors are: `attention_mask`,
#' `attention_bias` and `return_attention_scores`, which have a number for each query and key;
#' cross-attention of another length; [position_relative_keys()] and relative positions along
#' several axes; `attention_axes` without axis 1; [generate_tokens()] and
#' [incremental_decoder()], which work outside of [with_distribution()]. Keras's own attention
#' layers gather keys and values. Other layers must act on each token, or tokens are gathered for
#' them.
#'
#' # Other backends
#'
#' `head_parallel()` is an error on TensorFlow and torch. TensorFlow, and torch before Keras 3.16,
#' ignore distributions of Keras; they have `tf$distribute$MirroredStrategy()` for batches, torch its
#' `DistributedDataParallel`. With Keras 3.16 torch splits heads over processes under
#' `keras$distribution$ModelParallel()` and the rules of [attention_layout_map()]; models are not
#' decoded there.
#'
#' @param model The number of devices for the heads.
#' @param batch The number of parts of each batch; `NULL` is the number of remaining devices.
#' @param seq The number of parts of each sequence; the number of tokens must be a multiple of it.
#' @param num_key_value_heads The number of key/value heads; `NULL` takes that of the layers when
#'   they are built.
#' @param rules How other weights are split: a list whose names are regular expressions that match
#'   the whole path of a weight. Each element has for each axis of the weight `"model"`, `"batch"`
#'   or `NA`; `NULL` keeps a weight whole. Rules precede those for heads.
#' @param mlp Whether to split the hidden units of `Dense` layers whose names are or end in `up`,
#'   `gate` and `down`.
#'
#' @returns A distribution, for [with_distribution()].
#' @seealso [sharding_report()] plans a model before it is built, [check_sharding()] checks one.
#' @export
#' @examplesIf kerasattention:::can_run_on_jax()
#' # One device here. A CPU simulates 8 with
#' # Sys.setenv(XLA_FLAGS = "--xla_force_host_platform_device_count=8"), before Python starts.
#' head_parallel(
#'   model = 1,
#'   batch = 1,
#'   rules = list("head/kernel" = c(NA, "model")),
#'   mlp = TRUE
#' )
head_parallel <- function(
  model,
  batch = NULL,
  seq = 1,
  num_key_value_heads = NULL,
  rules = NULL,
  mlp = FALSE
) {
  check_required(model)
  check_whole_number(model, min = 1)
  check_whole_number(batch, min = 1, null = TRUE)
  check_whole_number(seq, min = 1)
  check_whole_number(num_key_value_heads, min = 1, null = TRUE)
  check_rules(rules)
  check_flag(mlp)
  call_python(
    "HeadParallel",
    as_int(model),
    batch = as_int(batch),
    seq = as_int(seq),
    num_key_value_heads = as_int(num_key_value_heads),
    rules = as_rules(rules),
    mlp = mlp,
    doing = "split the heads"
  )
}

check_rules <- function(rules, arg = caller_arg(rules), call = caller_env()) {
  rule <- "a list named by regular expressions, or NULL"
  good <- is_plain_list(rules) && length(rules) > 0 && is_named_all(rules)
  check_rule(rules, good, rule, TRUE, NULL, arg, call)
  for (name in names(rules)) {
    if (!is.null(rules[[name]])) {
      check_mesh_axes(rules[[name]], paste0(arg, "[[\"", name, "\"]]"), call)
    }
  }
  invisible(rules)
}

is_named_all <- function(x) {
  all(nzchar(rlang::names2(x))) && !anyDuplicated(names(x))
}

# The axes of a mesh for each axis of a weight.
check_mesh_axes <- function(axes, arg = caller_arg(axes), call = caller_env()) {
  all_whole <- is.logical(axes) && all(is.na(axes))
  good <- (is.character(axes) || all_whole) && length(axes) > 0
  rule <- "the name of an axis of the mesh, or NA, for each axis of the weight"
  check_rule(axes, good, rule, FALSE, NULL, arg, call)
}

as_rules <- function(rules) {
  if (!is.null(rules)) {
    values <- unname(lapply(rules, as_mesh_axes))
    reticulate::py_dict(as.list(names(rules)), values)
  }
}

# None for NA.
as_mesh_axes <- function(axes) {
  if (!is.null(axes)) {
    lapply(unname(axes), function(axis) if (is.na(axis)) NULL else axis)
  }
}

check_distribution <- function(
  distribution,
  arg = caller_arg(distribution),
  call = caller_env()
) {
  if (!is_distribution(distribution)) {
    rule <- "a distribution, such as `head_parallel(model = 8)`"
    abort_argument(arg, rule, distribution, call = call)
  }
  check_alive(distribution, arg = arg, call = call)
}

is_distribution <- function(x) {
  inherits(x, "keras.src.distribution.distribution_lib.Distribution")
}

# Whether examples that need JAX can be run.
can_run_on_jax <- function() {
  can_run_examples() && identical(loaded_backend(), "jax")
}
