#' Make sequences from a long data frame
#'
#' @description
#' Turns a data frame with a row for each id and time into the array (B, T, D) that layers
#' and models take, with a mask of the padding and the positions of the times.
#' `as.data.frame()` goes back, also with predictions.
#'
#' Do not use `array(data.matrix(data), c(B, T, D))`: R fills arrays by columns, which mixes
#' the values of different ids and times.
#'
#' @details
#' * Ids keep the order in which they first appear; the rows of an id are sorted by time.
#' * An id with fewer than T rows is padded at the end: `x` is 0 there, `mask` is `FALSE`, and
#'   `positions` repeats the last position.
#' * T is `length` or, by default, the largest number of rows of an id. An id with more than
#'   `length` rows keeps its last `length` rows, the latest ones.
#' * Missing times leave no gap in `x`: the rows of an id are consecutive. `positions` has
#'   the distances, for the argument `positions` of the layers.
#'
#' @param data A data frame, also a tibble or a data.table.
#' @param id,time,vars Names of columns, as strings. `id` says which sequence a row belongs
#'   to. `time` is a number, a date or a date-time; no two rows may have the same id and
#'   time. `vars`, one or several, are numbers or logicals without `NA`.
#' @param length T, or `NULL`.
#'
#' @returns A `sequences` object, of which `[`, `head()` and `tail()` take sequences by number, for
#' instance to hold some out. It is a list of
#' * `x`: an array (B, T, D) of the variables in the order of `vars`;
#' * `mask`: a logical matrix (B, T), `TRUE` for rows of `data` and `FALSE` for padding, for the
#'   arguments `value_mask` and `query_mask` of the layers;
#' * `positions`: a matrix (B, T) of the times as numbers; dates and date-times are days since
#'   1970-01-01;
#' * `ids`: the B ids;
#' * `times` and `columns`: the times of the rows and the names of the columns, for
#'   `as.data.frame()`.
#' @seealso [as.data.frame.sequences()]; [pack_sequences()] for token ids.
#' @export
#' @examples
#' weather <- data.frame(
#'   station = c("b", "b", "b", "a", "a"),
#'   day = as.Date("2024-03-01") + c(2, 0, 1, 0, 3),
#'   temperature = c(9.5, 7, 8, 11, 12.5),
#'   rain = c(0, 4, 1, 0, 2)
#' )
#' sequences <- as_sequences(weather, "station", "day", c("temperature", "rain"))
#' sequences
#' sequences$x[1, , ] # station "b": the first id in the data
#' sequences$mask
#' sequences$positions
#' as.data.frame(sequences)
#' @examplesIf kerasattention:::can_run_examples()
#'
#' # Padding is masked out, and predictions go back to their rows.
#' output <- layer_multi_head_attention(
#'   sequences$x,
#'   num_heads = 2,
#'   key_dim = 4,
#'   value_mask = sequences$mask,
#'   position = position_rotary(),
#'   positions = sequences$positions
#' )
#' as.data.frame(sequences, predictions = output)
as_sequences <- function(data, id, time, vars, length = NULL) {
  check_required(data)
  check_required(id)
  check_required(time)
  check_required(vars)
  check_data_frame(data)
  id <- check_column(id, data)
  time <- check_column(time, data)
  vars <- check_columns(vars, data)
  check_whole_number(length, min = 1, max = longest_row, null = TRUE)
  check_id_column(data[[id]], id)
  check_time_column(data[[time]], time)
  for (name in vars) {
    check_variable(data[[name]], name)
  }
  rows <- arrange_rows(data[[id]], data[[time]], length)
  check_no_duplicates(rows, data, id, time)
  columns <- list(id = id, time = time, vars = vars)
  new_sequences(data, rows[rows$kept, ], columns, length)
}

# The rows of `data` by id and time: their numbers, the number of their sequence and of their
# step in it, and their time as a number. The last `length` steps are kept.
arrange_rows <- function(ids, times, length) {
  sequence <- match(ids, unique(ids))
  row <- order(sequence, as.numeric(times))
  sequence <- sequence[row]
  count <- tabulate(sequence)
  step <- sequence(count)
  if (!is.null(length)) {
    step <- step - pmax(count - length, 0L)[sequence]
  }
  data.frame(
    row = row,
    sequence = sequence,
    step = step,
    time = as.numeric(times)[row],
    kept = step > 0
  )
}

new_sequences <- function(data, rows, columns, length) {
  ids <- unique(data[[columns$id]])
  times <- data[[columns$time]][rows$row]
  size <- c(length(ids), length %||% max(rows$step))
  at <- cbind(rows$sequence, rows$step)
  mask <- matrix(FALSE, size[[1]], size[[2]])
  mask[at] <- TRUE
  x <- vapply(
    columns$vars,
    function(name) {
      values <- matrix(0, size[[1]], size[[2]])
      values[at] <- as.numeric(data[[name]][rows$row])
      values
    },
    array(0, size)
  )
  structure(
    list(
      x = array(x, c(size, length(columns$vars))),
      mask = mask,
      positions = position_matrix(as_days(times), at, rowSums(mask), size),
      ids = ids,
      times = times,
      columns = columns
    ),
    class = "sequences"
  )
}

# Padding repeats the last position of its sequence.
position_matrix <- function(positions, at, count, size) {
  filled <- matrix(NA_real_, size[[1]], size[[2]])
  filled[at] <- positions
  last <- filled[cbind(seq_len(size[[1]]), count)]
  padding <- is.na(filled)
  filled[padding] <- last[row(filled)[padding]]
  whole <- all(filled == trunc(filled) & abs(filled) <= .Machine$integer.max)
  if (whole) {
    storage.mode(filled) <- "integer"
  }
  filled
}
