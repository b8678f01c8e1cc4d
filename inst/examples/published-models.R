# The attention of published language models as calls of our layers, with the settings of
# their configs. Each call makes the layer; see the article "Which attention does that
# model use?" for the table.
#
#   source(system.file("examples", "published-models.R", package = "kerasattention"))
#   layer <- eval(published_models[["Llama 3.1 8B"]])

library(kerasattention)

# Llama 3.1 reads 16 times as far as the 8,192 tokens that Llama 3 was trained on.
llama3_scaling <- list(
  type = "llama3",
  factor = 8,
  low_freq_factor = 1,
  high_freq_factor = 4,
  original_max_position_embeddings = 8192
)

gpt_oss_scaling <- list(
  type = "yarn",
  factor = 32,
  original_max_position_embeddings = 4096,
  beta_fast = 32,
  beta_slow = 1,
  truncate = FALSE
)

deepseek_scaling <- function(mscale) {
  list(
    type = "yarn",
    factor = 40,
    original_max_position_embeddings = 4096,
    beta_fast = 32,
    beta_slow = 1,
    mscale = mscale,
    mscale_all_dim = mscale
  )
}

published_models <- alist(
  "Llama 2 7B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 32,
    num_key_value_heads = 32,
    use_bias = FALSE,
    position = position_rotary(),
    use_causal_mask = TRUE
  ),
  "Llama 3.1 8B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 32,
    num_key_value_heads = 8,
    use_bias = FALSE,
    position = position_rotary(theta = 500000, scaling = llama3_scaling),
    use_causal_mask = TRUE
  ),
  "Mistral 7B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 32,
    num_key_value_heads = 8,
    use_bias = FALSE,
    sliding_window = 4096,
    position = position_rotary(),
    use_causal_mask = TRUE
  ),
  # Gemma 2 and Gemma 3 alternate: layers with a window, and global ones.
  "Gemma 2 9B, windows" = layer_group_query_attention(
    head_dim = 256,
    num_query_heads = 16,
    num_key_value_heads = 8,
    use_bias = FALSE,
    sliding_window = 4096,
    logit_soft_cap = 50,
    position = position_rotary(),
    use_causal_mask = TRUE
  ),
  "Gemma 2 9B, global" = layer_group_query_attention(
    head_dim = 256,
    num_query_heads = 16,
    num_key_value_heads = 8,
    use_bias = FALSE,
    logit_soft_cap = 50,
    position = position_rotary(),
    use_causal_mask = TRUE
  ),
  "Gemma 3 4B, windows" = layer_group_query_attention(
    head_dim = 256,
    num_query_heads = 8,
    num_key_value_heads = 4,
    use_bias = FALSE,
    sliding_window = 1024,
    qk_norm = TRUE,
    position = position_rotary(),
    use_causal_mask = TRUE
  ),
  "Gemma 3 4B, global" = layer_group_query_attention(
    head_dim = 256,
    num_query_heads = 8,
    num_key_value_heads = 4,
    use_bias = FALSE,
    qk_norm = TRUE,
    position = position_rotary(
      theta = 1000000,
      scaling = list(type = "linear", factor = 8)
    ),
    use_causal_mask = TRUE
  ),
  "Qwen 3 8B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 32,
    num_key_value_heads = 8,
    use_bias = FALSE,
    qk_norm = TRUE,
    position = position_rotary(theta = 1000000),
    use_causal_mask = TRUE
  ),
  "GPT-J 6B" = layer_multi_head_attention(
    num_heads = 16,
    key_dim = 256,
    use_bias = FALSE,
    position = position_rotary(fraction = 0.25, layout = "interleaved"),
    use_causal_mask = TRUE
  ),
  "GPT-NeoX 20B" = layer_multi_head_attention(
    num_heads = 64,
    key_dim = 96,
    position = position_rotary(fraction = 0.25),
    use_causal_mask = TRUE
  ),
  "MPT 7B" = layer_multi_head_attention(
    num_heads = 32,
    key_dim = 128,
    use_bias = FALSE,
    position = position_alibi(),
    use_causal_mask = TRUE
  ),
  # All layers of T5's encoder share one position, those of its decoder another.
  "T5 base, encoder" = layer_multi_head_attention(
    num_heads = 12,
    key_dim = 64,
    use_bias = FALSE,
    position = position_relative()
  ),
  "T5 base, decoder" = layer_multi_head_attention(
    num_heads = 12,
    key_dim = 64,
    use_bias = FALSE,
    position = position_relative(),
    use_causal_mask = TRUE
  ),
  # gpt-oss alternates too.
  "gpt-oss 20B, windows" = layer_group_query_attention(
    head_dim = 64,
    num_query_heads = 64,
    num_key_value_heads = 8,
    sliding_window = 128,
    attention_sink = TRUE,
    position = position_rotary(theta = 150000, scaling = gpt_oss_scaling),
    use_causal_mask = TRUE
  ),
  "gpt-oss 20B, global" = layer_group_query_attention(
    head_dim = 64,
    num_query_heads = 64,
    num_key_value_heads = 8,
    attention_sink = TRUE,
    position = position_rotary(theta = 150000, scaling = gpt_oss_scaling),
    use_causal_mask = TRUE
  ),
  "OLMo 2 7B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 32,
    num_key_value_heads = 32,
    use_bias = FALSE,
    qk_norm = list(over = "width"),
    position = position_rotary(theta = 500000),
    use_causal_mask = TRUE
  ),
  "Command R+" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 96,
    num_key_value_heads = 8,
    use_bias = FALSE,
    qk_norm = list(type = "layer", per_head = TRUE, epsilon = 1e-5),
    position = position_rotary(theta = 75000000, layout = "interleaved"),
    use_causal_mask = TRUE
  ),
  "DeepSeek-V2 Lite" = layer_latent_attention(
    num_heads = 16,
    head_dim = 128,
    kv_rank = 512,
    rotary_dim = 64,
    position = position_rotary(
      layout = "interleaved",
      scaling = deepseek_scaling(0.707)
    ),
    use_causal_mask = TRUE
  ),
  # Queries come from a latent as well.
  "DeepSeek-V3" = layer_latent_attention(
    num_heads = 128,
    head_dim = 128,
    kv_rank = 512,
    query_rank = 1536,
    rotary_dim = 64,
    position = position_rotary(
      layout = "interleaved",
      scaling = deepseek_scaling(1)
    ),
    use_causal_mask = TRUE
  ),
  # Positions of three axes: frame, row and column.
  "Qwen2-VL 7B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 28,
    num_key_value_heads = 4,
    position = position_rotary(theta = 1000000, sections = c(16, 24, 24)),
    use_causal_mask = TRUE
  ),
  "Qwen3-VL 8B" = layer_group_query_attention(
    head_dim = 128,
    num_query_heads = 32,
    num_key_value_heads = 8,
    use_bias = FALSE,
    qk_norm = TRUE,
    position = position_rotary(
      theta = 5000000,
      sections = list(type = "interleaved", sizes = c(24, 20, 20))
    ),
    use_causal_mask = TRUE
  ),
  # Two of three layers of ModernBERT have windows.
  "ModernBERT base, windows" = layer_multi_head_attention(
    num_heads = 12,
    key_dim = 64,
    use_bias = FALSE,
    sliding_window = 65,
    position = position_rotary()
  ),
  "ModernBERT base, global" = layer_multi_head_attention(
    num_heads = 12,
    key_dim = 64,
    use_bias = FALSE,
    position = position_rotary(theta = 160000)
  ),
  # The inputs are windows of 7 x 7 of an image.
  "Swin tiny, stage 1" = layer_multi_head_attention(
    num_heads = 3,
    key_dim = 32,
    position = position_relative(max_distance = 6, axes = 2)
  )
)
