# The exported functions: for each argument right values, as expressions, and what the
# result must be. An argument that begins with `*` is always given.

is_tensor_value <- function(x) kerasattention:::is_tensor(x)

is_layer_value <- function(x) kerasattention:::is_layer(x)

is_model_value <- function(x) kerasattention:::is_model(x)

# What a layer function gives depends on its `object` and on the scores.
is_layer_result <- function(x) {
  is_tensor_value(x) ||
    is_layer_value(x) ||
    identical(names(x), c("attention_output", "attention_scores"))
}

layer_options <- alist(
  dropout = c(0, 0.5),
  use_bias = c(TRUE, FALSE),
  flash_attention = c(FALSE, TRUE),
  kernel_initializer = c("zeros", "he_normal"),
  bias_initializer = list(function(shape) array(0, shape)),
  kernel_regularizer = c("l2", "l1"),
  bias_regularizer = "l2",
  activity_regularizer = "l2",
  kernel_constraint = "non_neg",
  bias_constraint = "max_norm",
  seed = 1:3,
  value = list(numbers(2, 7, 8)),
  key = list(numbers(2, 7, 8)),
  sliding_window = 1:3,
  use_gate = list(TRUE, "element", "head"),
  position = list(position_rotary(), position_alibi(), position_relative()),
  qk_norm = list(
    TRUE,
    "layer",
    list(type = "l2", over = "width", after_position = TRUE)
  ),
  logit_soft_cap = c(1, 30),
  attention_sink = c(TRUE, FALSE),
  value_norm = c(TRUE, FALSE),
  scale = list(0.5, 1L, "learned"),
  query_scale = list(scale_by_position(), scale_by_position("log", length = 3)),
  mask = list(
    mask_causal() & (mask_window(2) | mask_sinks(1)),
    !mask_chunk(3),
    mask_function(function(q, k) abs(q - k) < 2)
  ),
  attention_mask = list(matrix(TRUE, 5, 5), array(1, c(2, 5, 5))),
  attention_bias = list(matrix(0, 5, 5)),
  segment_ids = list(matrix(1, 2, 5)),
  bidirectional = list(matrix(c(0, 2), 2, 5)),
  positions = list(
    matrix(0:4, 1),
    matrix(c(-1, 0, 0.25, 3, 2.5), 1),
    as.Date("2024-02-28") + 0:4
  ),
  use_causal_mask = c(TRUE, FALSE),
  return_attention_scores = c(TRUE, FALSE),
  training = c(TRUE, FALSE),
  query_mask = list(matrix(TRUE, 2, 5)),
  value_mask = list(matrix(TRUE, 2, 5)),
  name = "mine",
  dtype = c("float32", "float16"),
  trainable = c(TRUE, FALSE),
  inputs = list(x)
)

inputs <- quote(list(
  NULL,
  x,
  list(x, x),
  list(query = x, value = x),
  tensor,
  symbolic,
  keras$Sequential()
))

functions <- list(
  layer_multi_head_attention = list(
    arguments = c(
      list(
        "*object" = inputs,
        "*num_heads" = quote(c(2, 3)),
        "*key_dim" = 4,
        value_dim = 6,
        output_shape = quote(list(9, c(2, 4))),
        attention_axes = 1
      ),
      layer_options
    ),
    result = is_layer_result
  ),
  layer_group_query_attention = list(
    arguments = c(
      list(
        "*object" = inputs,
        "*head_dim" = 4,
        "*num_query_heads" = quote(c(4, 6)),
        "*num_key_value_heads" = quote(c(1, 2))
      ),
      layer_options[names(layer_options) != "inputs"]
    ),
    result = is_layer_result
  ),
  layer = list(
    arguments = c(
      list("*query" = quote(list(x, tensor, symbolic))),
      layer_options[
        names(layer_options) %in%
          kerasattention:::call_arguments |
          names(layer_options) %in% c("value", "key")
      ]
    ),
    result = is_layer_result
  ),
  attention_scores = list(
    arguments = alist(
      "*model" = list(model),
      "*x" = list(x),
      layers = list(1, "attention"),
      heads = 1:2,
      queries = list(1, c(2, 5)),
      tokens = list(letters[1:5])
    ),
    result = function(x) inherits(x, "attention_scores")
  ),
  `[` = list(
    arguments = alist(
      "*x" = list(scores),
      layer = list(1, "attention"),
      head = 1:2,
      query = 1:5,
      key = 1:5,
      sample = 1:2
    ),
    result = function(x) TRUE,
    fixed = 1
  ),
  attention_rollout = list(
    arguments = alist("*scores" = list(scores)),
    result = function(x) inherits(x, "attention_rollout")
  ),
  head_importance = list(
    arguments = alist(
      "*model" = list(model),
      "*x" = list(x),
      "*y" = list(numbers(2, 5, 1)),
      loss = c("mse", "mae"),
      batch_size = c(1, 32),
      normalize = c(TRUE, FALSE)
    ),
    result = function(x) is.data.frame(x)
  ),
  prune_heads = list(
    arguments = alist(
      "*model" = list(model),
      heads = list(list(attention = 1), NULL),
      importance = list(importance, NULL),
      fraction = list(0.5, NULL),
      quiet = TRUE
    ),
    result = is_model_value
  ),
  convert_attention = list(
    arguments = alist(
      "*model" = list(model),
      num_key_value_heads = 1:2,
      method = c("mean", "first", "random"),
      seed = 1:3
    ),
    result = is_model_value
  ),
  enable_lora = list(
    arguments = alist(
      "*model" = list(keras$models$clone_model(model)),
      "*rank" = 1:2,
      alpha = c(1, 2),
      projections = list("query", c("key", "value")),
      layers = list(1, "attention")
    ),
    result = is_model_value
  ),
  load_projections = list(
    arguments = alist(
      "*layer" = list(bare),
      "*query" = list(numbers(8, 8)),
      "*key" = list(numbers(8, 8)),
      "*value" = list(numbers(8, 8)),
      "*output" = list(numbers(8, 8)),
      undo_permutation = c(TRUE, FALSE)
    ),
    result = is_layer_value
  ),
  pack_sequences = list(
    arguments = alist(
      "*sequences" = list(list(1:3, 4:5)),
      "*length" = c(3, 9)
    ),
    result = function(x) {
      identical(names(x), c("tokens", "segment_ids", "positions"))
    }
  ),
  generate_tokens = list(
    arguments = alist(
      "*model" = list(token_model),
      "*tokens" = list(c(1, 2), matrix(1:4, 2), list(1, c(2, 3))),
      "*max_new_tokens" = 1:2,
      temperature = c(0, 1),
      top_k = 1:3,
      top_p = 0.5,
      stop_token = list(1, c(1, 2)),
      seed = 1:3,
      num_return_sequences = 1:2,
      inputs = list(NULL),
      callback = list(function(tokens) TRUE),
      progress = FALSE
    ),
    result = function(x) is.integer(x) || is.list(x)
  ),
  incremental_decoder = list(
    arguments = alist(
      "*model" = list(token_model),
      "*batch_size" = 1:2,
      "*max_length" = c(8, 64)
    ),
    result = function(x) inherits(x, "incremental_decoder")
  ),
  `decoder$prefill` = list(
    arguments = alist(
      "*tokens" = list(c(1, 2), matrix(1:3, 1)),
      inputs = list(NULL)
    ),
    before = quote(decoder$reset()),
    result = is.array
  ),
  `decoder$step` = list(
    arguments = alist("*tokens" = list(1, 2L)),
    before = quote({
      decoder$reset()
      decoder$prefill(1)
    }),
    result = is.array
  ),
  position_rotary = list(
    arguments = alist(
      theta = c(10, 500),
      fraction = c(0.5, 1),
      layout = c("half", "interleaved"),
      scaling = list(list(type = "linear", factor = 2))
    ),
    result = function(x) inherits(x, "kerasattention_position")
  ),
  mask_window = list(
    arguments = alist(before = 1:3, after = 1:3),
    result = function(x) inherits(x, "kerasattention_mask")
  ),
  mask_chunk = list(
    arguments = alist(size = 1:3),
    result = function(x) inherits(x, "kerasattention_mask")
  ),
  mask_blocks = list(
    arguments = alist(matrix = list(diag(3), matrix(TRUE, 2, 2)), size = 1:3),
    result = function(x) inherits(x, "kerasattention_mask")
  ),
  mask_function = list(
    arguments = alist(f = list(function(q, k) q > k)),
    result = function(x) inherits(x, "kerasattention_mask")
  ),
  position_relative = list(
    arguments = alist(num_buckets = c(4, 8), max_distance = c(20, 128)),
    result = function(x) inherits(x, "kerasattention_position")
  ),
  position_relative_keys = list(
    arguments = alist(
      max_distance = c(5, 128),
      kind = list("shaw", "huang", "transformer_xl", "deberta")
    ),
    result = function(x) inherits(x, "kerasattention_position")
  )
)
