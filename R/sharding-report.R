#' Show what each device has of a model
#'
#' `sharding_report()` lists the weights of a model with the part that each device has, and why.
#' With a function that builds the model, and a distribution, it is a plan: nothing is allocated,
#' so that a model can be planned that no single machine holds.
#'
#' `check_sharding()` is an error that names the kernels of attention layers that are whole, though
#' the devices could split them by heads. The results of such a model are right, so nothing else
#' shows it. Within [with_distribution()], rules of [head_parallel()] that concern no weight are an
#' error too.
#'
#' @param model A model that was built in [with_distribution()]; or a function without arguments
#'   that builds one, without `compile()`.
#' @param distribution The distribution, where `model` is a function.
#' @param length The number of tokens for which the collective operations (exchanges between
#'   devices) are counted: those of two attention blocks that are compiled without weights. `NULL` is
#'   the length of the model's first input, at most 1024.
#'
#' @returns A data frame of class `sharding_report` with a row for each weight and the columns
#'   `path`, `shape`, `spec` (the axes of the mesh over which each axis is split), `shard_shape`,
#'   `bytes_per_device` and `why`. Its attribute `totals` has the sums and, as `summary`, the line
#'   that `print()` ends with. `check_sharding()` returns the model, invisibly.
#' @export
#' @examplesIf kerasattention:::can_run_on_jax()
#' keras <- reticulate::import("keras")
#' build <- function() {
#'   tokens <- keras$Input(reticulate::tuple(6L), dtype = "int32")
#'   hidden <- keras$layers$Embedding(50L, 16L, name = "tok")(tokens)
#'   hidden <- layer_group_query_attention(
#'     hidden,
#'     head_dim = 4,
#'     num_query_heads = 4,
#'     num_key_value_heads = 2
#'   )
#'   keras$Model(tokens, keras$layers$Dense(50L, name = "head")(hidden))
#' }
#' sharding_report(build, head_parallel(model = 1, batch = 1))
sharding_report <- function(model, distribution = NULL, length = NULL) {
  check_required(model)
  is_builder <- is.function(model) && !is_python(model)
  if (!is_builder) {
    check_model(model)
    if (!is.null(distribution)) {
      rule <- "NULL where `model` is a model"
      abort_argument("distribution", rule, distribution)
    }
  } else {
    check_distribution(distribution)
  }
  check_whole_number(length, min = 1, null = TRUE)
  report <- python_module()$distribution$report
  found <- with_python(
    report$report_columns(model, distribution, as_int(length)),
    "report how the model is split"
  )
  structure(
    list2DF(lapply(found$columns, unlist)),
    totals = found$totals,
    class = c("sharding_report", "data.frame")
  )
}

#' @rdname sharding_report
#' @export
check_sharding <- function(model) {
  check_required(model)
  check_model(model)
  call_python("check_sharding", model, doing = "confirm how the model is split")
  invisible(model)
}

#' @export
print.sharding_report <- function(x, ..., n = 15) {
  totals <- attr(x, "totals")
  frame <- structure(x, class = "data.frame", totals = NULL)
  shown <- c("path", "shape", "shard_shape", "why")
  # Some of the rows or columns are printed as the data frame that they are.
  if (is.null(totals) || !all(shown %in% names(x))) {
    print(frame, ...)
    return(invisible(x))
  }
  first <- utils::head(frame[shown], n)
  names(first)[3] <- "on a device"
  print(first, right = FALSE, row.names = FALSE)
  more <- nrow(x) - nrow(first)
  if (more > 0) {
    cat("... and ", more, " more weights\n", sep = "")
  }
  cat(strwrap(totals$summary), sep = "\n")
  invisible(x)
}
