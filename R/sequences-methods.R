# Methods for `sequences` objects, which as_sequences() makes.

#' Turn sequences into a long data frame
#'
#' Reverses [as_sequences()]: makes a row for each id and time, without the padding.
#'
#' @param x An object made by [as_sequences()].
#' @param row.names,optional,... Not used.
#' @param predictions `NULL`, or what a model predicts for each step: an array or tensor
#'   (B, T, F), or (B, T) for one number per step. Its columns are `.pred`, or `.pred_1` to
#'   `.pred_F`; where the array has names on its third axis, `.pred_` and the name.
#'
#' @returns A data frame with the columns of `id`, `time` and `vars`, and those of the
#'   predictions. The rows are ordered by sequence and time. Variables are numbers, also where
#'   they were logicals.
#' @export
#' @examples
#' data <- data.frame(id = c(1, 1, 2), time = c(0, 1, 0), value = c(5, 6, 7))
#' sequences <- as_sequences(data, "id", "time", "value")
#' as.data.frame(sequences, predictions = sequences$x * 10)
as.data.frame.sequences <- function(
  x,
  row.names = NULL,
  optional = FALSE,
  ...,
  predictions = NULL
) {
  check_dots(list(...), "stringsAsFactors")
  predictions <- as_predictions(predictions, dim(x$mask))
  step <- which(t(x$mask), arr.ind = TRUE)
  at <- cbind(step[, 2], step[, 1])
  frame <- c(
    list(x$ids[at[, 1]], x$times),
    columns_at(x$x, at),
    columns_at(predictions, at)
  )
  columns <- x$columns
  made <- prediction_names(predictions)
  names(frame) <- c(columns$id, columns$time, columns$vars, made)
  twice <- intersect(made, unlist(columns))
  if (length(twice) > 0) {
    abort(
      "{.arg predictions} would give a second column {.val {twice[[1]]}}.",
      hint = "Name the third axis of `predictions`, or rename that column.",
      arg = "predictions"
    )
  }
  list2DF(frame)
}

# The values of each feature of (B, T, F) at the rows of `at`.
columns_at <- function(array, at) {
  lapply(seq_len(dim(array)[3] %||% 0), function(feature) {
    array[cbind(at, feature)]
  })
}

as_predictions <- function(
  x,
  size,
  arg = "predictions",
  call = caller_env()
) {
  if (is.null(x)) {
    return(array(0, c(size, 0)))
  }
  rule <- paste(
    "an array (B, T, F), or (B, T), with (B, T) =",
    show_shape(size)
  )
  check_alive(x, arg = arg, call = call)
  values <- if (is_tensor(x)) as.array(x) else x
  fits <- is_numeric_array(values) &&
    axes_of(values) %in% 2:3 &&
    all(dim(values)[1:2] == size)
  if (!fits) {
    by_sequence <- identical(as.integer(dim_of(values)[1]), size[[1]]) &&
      axes_of(values) <= 2
    hint <- if (by_sequence) {
      "Predictions for whole sequences go with their ids: `data.frame(id = x$ids, predictions)`."
    }
    abort_argument(arg, rule, x, hint, call)
  }
  names <- dimnames(values)[3][[1]]
  array(
    values,
    c(size, if (axes_of(values) == 3) dim(values)[[3]] else 1),
    list(NULL, NULL, names)
  )
}

prediction_names <- function(predictions) {
  count <- dim(predictions)[[3]]
  if (!is.null(dimnames(predictions)[[3]])) {
    paste0(".pred_", dimnames(predictions)[[3]])
  } else if (count == 1) {
    ".pred"
  } else {
    sprintf(".pred_%d", seq_len(count))
  }
}

#' @export
`[.sequences` <- function(x, i) {
  call <- rlang::current_env()
  at <- match_positions(i, length(x$ids), NULL, "i", call)
  rows <- split(seq_along(x$times), rep(seq_along(x$ids), rowSums(x$mask)))
  x$x <- x$x[at, , , drop = FALSE]
  x$mask <- x$mask[at, , drop = FALSE]
  x$positions <- x$positions[at, , drop = FALSE]
  x$ids <- x$ids[at]
  x$times <- x$times[unlist(rows[at])]
  x
}

#' @export
head.sequences <- function(x, n = 6L, ...) {
  check_whole_number(n)
  x[head(seq_along(x$ids), n)]
}

#' @export
tail.sequences <- function(x, n = 6L, ...) {
  check_whole_number(n)
  x[tail(seq_along(x$ids), n)]
}

#' @export
print.sequences <- function(x, ...) {
  cat(format(x, ...), sep = "\n")
  invisible(x)
}

#' @export
format.sequences <- function(x, ...) {
  size <- dim(x$x)
  count <- rowSums(x$mask)
  kind <- if (inherits(x$times, c("Date", "POSIXct"))) " in days" else ""
  c(
    sprintf(
      "<sequences> of %d id%s, x: %s (B, T, D)",
      size[[1]],
      plural(size[[1]]),
      paste(size, collapse = " x ")
    ),
    paste0("id: ", x$columns$id),
    sprintf(
      "time: %s, %s to %s; positions%s from %s to %s",
      x$columns$time,
      format(min(x$times)),
      format(max(x$times)),
      kind,
      format(min(x$positions), digits = 12),
      format(max(x$positions), digits = 12)
    ),
    paste0("vars: ", shorten(paste(x$columns$vars, collapse = ", "), 60)),
    sprintf(
      "lengths: %d to %d; %d of %d steps are padding",
      min(count),
      max(count),
      sum(!x$mask),
      length(x$mask)
    )
  )
}
