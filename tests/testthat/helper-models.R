# Two attention layers, (5, 14) to (5, 14), and what goes into them.
two_layers <- function(use_causal_mask = FALSE) {
  skip_without_keras()
  keras()$utils$set_random_seed(3L)
  inputs <- input(5L, 14L)
  output <- inputs |>
    layer_multi_head_attention(
      3,
      4,
      use_causal_mask = use_causal_mask,
      name = "first"
    ) |>
    layer_group_query_attention(4, 6, 2, name = "second")
  model <- keras()$Model(inputs, output)
  model$compile(loss = "mse")
  model
}

samples <- function(n = 4) numbers(n, 5, 14, seed = 2)

toy_model <- function() two_layers(use_causal_mask = TRUE)

toy_input <- function() samples(2)
