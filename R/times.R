# Times as numbers of days.

is_times <- function(x) inherits(x, c("Date", "POSIXt"))

# Dates count days, date-times seconds.
as_days <- function(times) {
  if (inherits(times, "POSIXct")) {
    return(as.numeric(times) / 86400)
  }
  as.numeric(times)
}
