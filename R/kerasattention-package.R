#' kerasattention: attention layers for Keras
#'
#' Attention layers for Keras 3 models that are written in R with pipes, with the R package
#' keras3 or with reticulate only, on TensorFlow, JAX or PyTorch; and functions to generate
#' text, to inspect models and to load published weights. The functions by task:
#'
#' @section Install and choose a backend:
#' * [install_kerasattention()] installs Python, Keras and a backend.
#' * [use_backend()] chooses the backend of the session.
#' * [attention_sitrep()] shows what is in use, and what to type if something is missing.
#'
#' @section Prepare data:
#' * [as_sequences()] makes an array (B, T, D) from a data frame with several sequences.
#' * [pack_sequences()] packs short sequences into rows.
#' * [shapes] explains arrays, masks and the letters for their sizes.
#'
#' @section Write models:
#' * [layer_multi_head_attention()], [layer_group_query_attention()] and
#'   [layer_latent_attention()] are the layers.
#' * [position_rotary()], [position_alibi()], [position_relative()] and
#'   [position_relative_keys()] are position encodings for their argument `position`.
#' * [scale_by_position()] is a factor of queries for their argument `query_scale`.
#' * [mask_causal()] and the like are rules for their argument `mask`; `&`, `|` and `!` combine
#'   them.
#' * [convert_attention()] replaces the Keras attention layers of a model by ours, and can
#'   make a multi-head model a grouped-query model.
#'
#' @section Generate text:
#' * [generate_tokens()] continues token ids with a key/value cache.
#' * [incremental_decoder()] does so step by step, and returns logits.
#'
#' @section Explain and prune models:
#' * [attention_scores()] collects attention maps, and `plot()` draws them.
#' * [attention_rollout()] follows the attention through all layers.
#' * [head_importance()] measures how much each head matters; [prune_heads()] removes heads.
#'
#' @section Published models and fine-tuning:
#' * [load_projections()] loads the weights of a checkpoint into a layer.
#' * [enable_lora()] fine-tunes a model with few weights.
#'
#' @section Several devices:
#' * [head_parallel()] splits attention heads over devices, for models built and trained in
#'   [with_distribution()].
#' * [sharding_report()] shows what each device has; [check_sharding()] checks it.
#' * [attention_cluster()] joins processes, on one machine or many.
#'
#' @section Learn more:
#' `vignette("kerasattention")` is an introduction. Errors have the class
#' `kerasattention_error`. To report a problem, add the output of [attention_sitrep()].
#'
#' @importFrom rlang %||% .data caller_arg caller_env names2
"_PACKAGE"

# State of the session: the Python `module` and its `functions`, once imported; `importing`,
# TRUE during the import; `required`, the packages that reticulate was asked for; `backend_file`,
# `finder` and `announced`, see R/backend.R.
the <- new.env(parent = emptyenv())
