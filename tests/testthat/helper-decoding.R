# A small causal model of 13 tokens whose logits lie far apart.
token_model <- function(window = NULL) {
  skip_without_keras()
  keras()$utils$set_random_seed(5L)
  tokens <- input(NULL, dtype = "int32")
  hidden <- keras()$layers$Embedding(13L, 14L)(tokens) |>
    layer_group_query_attention(
      head_dim = 4,
      num_query_heads = 6,
      num_key_value_heads = 2,
      sliding_window = window,
      position = position_rotary(),
      use_causal_mask = TRUE,
      name = "attention"
    )
  logits <- keras()$layers$Dense(13L, name = "logits")(hidden)
  model <- keras()$Model(tokens, logits)
  # The weights of a new model hardly tell the tokens apart.
  for (i in seq_along(model$weights)) {
    weight <- model$weights[[i]]
    weight$assign(0.5 * numbers(dim(as.array(weight)), seed = i))
  }
  model
}

# Logits (T, V) after each token of one row, all computed at once.
full_pass <- function(model, row) {
  as.array(model(matrix(as.integer(row), 1)))[1, , ]
}

# The likeliest tokens by a full pass for each.
continue <- function(model, row, count) {
  for (i in seq_len(count)) {
    logits <- full_pass(model, c(row, 0)) # a row of two or more has two axes
    row <- c(row, which.max(logits[length(row), ]) - 1L)
  }
  as.integer(row)
}
