#' Remove attention heads
#'
#' Copies a model without some of its attention heads. They are cut out of every kernel of
#' their layer, which becomes smaller; all other weights are kept. A key/value head is
#' removed when all of its query heads are. In grouped-query layers all groups must keep
#' the same number of query heads.
#'
#' @inheritParams attention_scores
#' @param heads A list named by attention layers, which holds the numbers of the query
#'   heads to remove, from 1.
#' @param importance,fraction Instead of `heads`: a [head_importance()] data frame, and
#'   the share of all query heads to remove, the least important first. Every layer
#'   keeps at least one head.
#' @param quiet Whether to omit the message with the number of removed heads.
#'
#' @returns The smaller model, compiled as `model` is, with a new optimizer.
#' @references Michel et al. 2019, Are sixteen heads really better than one?
#'   <https://arxiv.org/abs/1905.10650>
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' output <- input |> layer_multi_head_attention(4, 4, name = "attention")
#' model <- keras$Model(input, output)
#' smaller <- prune_heads(model, heads = list(attention = c(2, 3)))
#' smaller$get_layer("attention")
prune_heads <- function(
  model,
  ...,
  heads = NULL,
  importance = NULL,
  fraction = NULL,
  quiet = FALSE
) {
  check_dots(list(...), c("heads", "importance", "fraction", "quiet"))
  check_required(model)
  check_model(model)
  check_flag(quiet)
  check_what_to_prune(heads, importance, fraction)
  call <- rlang::current_env()
  removed <- if (is.null(heads)) {
    split_by_layer <- split(
      importance$importance,
      factor(importance$layer, unique(importance$layer))
    )
    call_python(
      "least_important",
      model,
      lapply(split_by_layer, function(x) reticulate::np_array(x)),
      fraction,
      doing = "choose heads",
      call = call
    )
  } else {
    lapply(heads, zero_based)
  }
  # Lists, since reticulate makes a number of a vector of length one.
  removed <- lapply(removed, function(heads) as.list(as.integer(unlist(heads))))
  pruned <- call_python(
    "prune_heads",
    model,
    removed,
    doing = "prune heads",
    call = call
  )
  if (!quiet) {
    count <- sum(lengths(removed))
    before <- model$count_params()
    after <- pruned$count_params()
    cli::cli_inform(
      "Removed {count} head{?s}; the model has {after} parameters instead of {before}."
    )
  }
  pruned
}

is_importance <- function(x) {
  inherits(x, "head_importance") &&
    is.data.frame(x) &&
    nrow(x) > 0 &&
    all(c("layer", "head", "importance") %in% names(x)) &&
    all(is.finite(x$importance))
}

check_what_to_prune <- function(
  heads,
  importance,
  fraction,
  call = caller_env()
) {
  if (is.null(heads) == is.null(importance)) {
    abort(
      "Give either {.arg heads}, or {.arg importance} and {.arg fraction}.",
      arg = "heads",
      call = call
    )
  }
  if (is.null(heads)) {
    if (!is_importance(importance)) {
      abort_argument(
        "importance",
        "a `head_importance()` data frame",
        importance,
        call = call
      )
    }
    if (is.null(fraction)) {
      abort(
        "{.arg fraction} is required with {.arg importance}.",
        hint = "It is the share of all query heads to remove: `fraction = 0.25`.",
        arg = "fraction",
        call = call
      )
    }
    return(check_number(
      fraction,
      min = 0,
      below = 1,
      arg = "fraction",
      call = call
    ))
  }
  if (!is.null(fraction)) {
    abort(
      "{.arg fraction} goes with {.arg importance}, not with {.arg heads}.",
      arg = "fraction",
      call = call
    )
  }
  if (!is_plain_list(heads) || length(heads) == 0 || any(names2(heads) == "")) {
    abort_argument(
      "heads",
      "a list named by attention layers",
      heads,
      call = call
    )
  }
  for (name in names(heads)) {
    check_whole_numbers(
      heads[[name]],
      min = 1,
      arg = paste0("heads$", name),
      call = call
    )
  }
}
