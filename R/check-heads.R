# Checks numbers and sizes of heads against each other.

check_divisible_heads <- function(query_heads, kv_heads, call = caller_env()) {
  if (query_heads %% kv_heads == 0) {
    return(invisible())
  }
  abort(
    paste(
      "{.arg num_key_value_heads} must divide {.arg num_query_heads}:",
      "{query_heads} query heads cannot share {kv_heads} key/value heads."
    ),
    hint = divisors_hint(query_heads, kv_heads),
    arg = "num_key_value_heads",
    call = call
  )
}

# All possible K or, of many, the eight nearest to the given one.
divisors_hint <- function(query_heads, kv_heads) {
  divisors <- divisors_of(query_heads)
  nearest <- divisors[order(abs(log(divisors / kv_heads)))]
  few <- sort(utils::head(nearest, 8))
  paste0(
    "With ",
    format(query_heads, scientific = FALSE),
    " query heads it can be ",
    cli::format_inline("{.or {few}}"),
    if (length(few) < length(divisors)) ", among others",
    "."
  )
}

# Each divisor d up to sqrt(n) gives another one, n / d.
divisors_of <- function(n) {
  small <- seq_len(floor(sqrt(n)))
  small <- small[n %% small == 0]
  unique(c(small, rev(n / small)))
}

# The features of all heads are an axis of the projection kernels. Published models have some
# ten thousand; more than a million are a mistake, and would exhaust the memory.
check_width <- function(heads, size, arg, call = caller_env()) {
  most <- 2^20
  width <- prod(heads, size)
  if (width > most) {
    numbers <- format(
      c(heads, size, width, most),
      scientific = FALSE,
      trim = TRUE
    )
    abort(
      "{.arg {arg[[1]]}} times {.arg {arg[[2]]}} must be at most {numbers[[4]]}, not {numbers[[1]]} times {numbers[[2]]}.",
      arg = arg[[1]],
      call = call
    )
  }
}
