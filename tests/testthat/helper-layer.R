layer <- function(...) {
  layer_group_query_attention(
    head_dim = 5,
    num_query_heads = 6,
    num_key_value_heads = 3,
    ...
  )
}
