# Two sequences, T = 3 queries, S = 7 keys, D = 5, N = 6 heads
check <- function(
  ...,
  inputs = list(query = numbers(2, 3, 5), value = numbers(2, 7, 5))
) {
  check_call(inputs, list(...), axes = c(3, 3), heads = 6)
}
