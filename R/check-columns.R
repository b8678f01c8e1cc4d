# Checks of a long data frame and its columns, for as_sequences().

check_data_frame <- function(
  data,
  arg = caller_arg(data),
  call = caller_env()
) {
  rule <- "a data frame with a row for each id and time"
  if (!is.data.frame(data)) {
    hint <- if (is.matrix(data)) paste0("`as.data.frame(", arg, ")`.")
    abort_argument(arg, rule, data, hint, call)
  }
  if (nrow(data) == 0) {
    abort(
      "{.arg {arg}} must be {rule}: it has no rows.",
      arg = arg,
      call = call
    )
  }
  invisible(data)
}

check_column <- function(x, data, arg = caller_arg(x), call = caller_env()) {
  rule <- "the name of a column of `data`, as a string"
  name <- force_name(x, rule, arg, call)
  if (!is_string(name)) {
    abort_argument(arg, rule, name, quotes_hint(arg), call)
  }
  check_known(name, data, arg, call)
  as.vector(name)
}

check_columns <- function(x, data, arg = caller_arg(x), call = caller_env()) {
  rule <- "names of columns of `data`, as strings"
  names <- force_name(x, rule, arg, call)
  if (!is_text(names) || length(names) == 0 || anyNA(names)) {
    abort_argument(arg, rule, names, quotes_hint(arg), call)
  }
  twice <- names[duplicated(names)]
  if (length(twice) > 0) {
    abort(
      "{.arg {arg}} must name each column once: {.val {twice[[1]]}} is there twice.",
      arg = arg,
      call = call
    )
  }
  check_known(names, data, arg, call)
  as.vector(names)
}

# A name without quotes is a variable that does not exist, or another object.
force_name <- function(x, rule, arg, call) {
  tryCatch(x, error = function(cnd) {
    abort(
      "{.arg {arg}} must be {rule}: {conditionMessage(cnd)}.",
      hint = quotes_hint(arg),
      arg = arg,
      call = call
    )
  })
}

quotes_hint <- function(arg) {
  example <- if (arg == "vars") 'c("x", "y")' else paste0('"', arg, '"')
  paste0("Names of columns have quotes: `", arg, " = ", example, "`.")
}

check_known <- function(names, data, arg, call) {
  unknown <- setdiff(names, names(data))
  if (length(unknown) > 0) {
    near <- nearest_name(unknown[[1]], names(data))
    abort(
      "{.arg {arg}} must name columns of {.arg data}, which has no column {.val {unknown[[1]]}}.",
      hint = if (length(near) > 0) paste0("Did you mean \"", near, "\"?"),
      arg = arg,
      call = call
    )
  }
}

check_id_column <- function(x, name, call = caller_env()) {
  arg <- column_of(name)
  if (!is.atomic(x) || is.null(x) || axes_of(x) > 1) {
    rule <- "a column of numbers, strings or a factor"
    abort_argument(arg, rule, x, call = call)
  }
  check_complete(is.na(x), arg, "Give each row an id, or remove it.", call)
}

check_time_column <- function(x, name, call = caller_env()) {
  arg <- column_of(name)
  is_date <- inherits(x, c("Date", "POSIXct"))
  is_time <- is_plain_number(x) && !lost_integer64(x) || is_date
  rule <- "numbers, dates (<Date>) or date-times (<POSIXct>)"
  if (axes_of(x) > 1 || !is_time) {
    abort_argument(arg, rule, x, time_hint(x, arg), call)
  }
  check_complete(is.na(x), arg, "Give each row a time, or remove it.", call)
  infinite <- is.infinite(as.numeric(x))
  if (any(infinite)) {
    abort_argument(arg, paste("finite", rule), x[infinite][[1]], call = call)
  }
}

time_hint <- function(x, arg) {
  if (is.character(x) || is.factor(x)) {
    paste0("Dates: `as.Date(", arg, ")`; with time of day: `as.POSIXct()`.")
  } else if (inherits(x, "POSIXlt")) {
    paste0("Convert it first: `as.POSIXct(", arg, ")`.")
  } else {
    conversion_hint(x, arg) %||%
      paste0("Convert it first: `as.numeric(", arg, ")`.")
  }
}

# Categories are refused: their codes are no numbers to compute with.
check_variable <- function(x, name, call = caller_env()) {
  arg <- column_of(name)
  if (!is_numeric_array(x) || axes_of(x) > 1) {
    rule <- "a column of numbers or logicals"
    abort_argument(arg, rule, x, variable_hint(x, name), call)
  }
  if (lost_integer64(x)) {
    abort_argument(arg, "a column of numbers", x, call = call)
  }
  hint <- paste(
    "Fill them, or remove their rows:",
    "`positions` keeps the times of the others."
  )
  check_complete(is.na(x), arg, hint, call)
}

variable_hint <- function(x, name) {
  if (is.character(x) || is.factor(x)) {
    columns <- paste0("model.matrix(~ ", quoted_name(name), " - 1, data)")
    return(paste0(
      "A column of 0 and 1 for each category: `cbind(data, ",
      columns,
      ")`; their names are `vars`."
    ))
  }
  if (length(dim(x)) > 1 || is.list(x)) {
    return("Give each variable its own column.")
  }
  conversion_hint(x, column_of(name)) %||%
    paste0("Convert it first: `as.numeric(", column_of(name), ")`.")
}

check_complete <- function(missing, arg, hint, call) {
  if (any(missing)) {
    abort(
      "{.arg {arg}} must not hold NA: found {sum(missing)}, the first in row {which(missing)[[1]]}.",
      hint = hint,
      arg = arg,
      call = call
    )
  }
}

check_no_duplicates <- function(rows, data, id, time, call = caller_env()) {
  same <- diff(rows$sequence) == 0 & diff(rows$time) == 0
  if (!any(same)) {
    return(invisible())
  }
  first <- rows$row[which(same)[[1]] + 0:1]
  where <- paste(
    paste(id, format(data[[id]][first[[1]]])),
    paste(time, format(data[[time]][first[[1]]])),
    sep = ", "
  )
  abort(
    "{.arg data} must have one row for each id and time: rows {sort(first)} are both {where}.",
    hint = "Summarise them first, or give them ids of their own.",
    arg = "data",
    call = call
  )
}

column_of <- function(name) paste0("data$", quoted_name(name))

quoted_name <- function(name) deparse1(as.name(name), backtick = TRUE)
