# Grouped-query attention written out in R, head by head and query by query, from a
# layer's weights. `mask` is (B, N, T, S); `norm(x, of)` is applied to the queries, keys and
# values of a head, matrices with a row for each, `of` being "query", "key" and "value". `scale` is one
# number, or one for each feature of a head.
reference_attention <- function(
  layer,
  query,
  value = query,
  key = value,
  mask = NULL,
  norm = function(x, of) x,
  scale = NULL
) {
  w <- function(dense, what) as.array(layer[[dense]][[what]])
  project <- function(x, dense, head) {
    weights <- w(dense, "kernel")[, head, ]
    sweep(x %*% weights, 2, w(dense, "bias")[head, ], "+")
  }
  heads <- dim(w("_query_dense", "kernel"))[2]
  group <- heads / dim(w("_key_dense", "kernel"))[2]
  output_kernel <- w("_output_dense", "kernel")
  result <- array(0, c(dim(query)[1:2], dim(output_kernel)[3]))
  scores <- array(0, c(dim(query)[1], heads, dim(query)[2], dim(key)[2]))
  for (b in seq_len(dim(query)[1])) {
    for (n in seq_len(heads)) {
      k <- (n - 1) %/% group + 1
      q <- norm(project(query[b, , ], "_query_dense", n), "query")
      keys <- norm(project(key[b, , ], "_key_dense", k), "key")
      factor <- if (is.null(scale)) 1 / sqrt(ncol(q)) else scale
      logits <- q %*% (factor * t(keys)) # of the features, rows of t(keys)
      if (!is.null(mask)) {
        logits[!mask[b, n, , ]] <- -Inf
      }
      weights <- exp(logits - apply(logits, 1, function(row) max(row, -1e30)))
      weights <- weights / pmax(rowSums(weights), 1e-30)
      scores[b, n, , ] <- weights
      values <- norm(project(value[b, , ], "_value_dense", k), "value")
      attended <- weights %*% values
      result[b, , ] <- result[b, , ] + attended %*% output_kernel[n, , ]
    }
    result[b, , ] <- sweep(result[b, , ], 2, w("_output_dense", "bias"), "+")
  }
  list(attention_output = result, attention_scores = scores)
}
