#' Grouped-query attention layer
#'
#' @description
#' In grouped-query attention (Ainslie et al. 2023) the N query heads share K
#' key/value heads: G = N / K query heads use the same keys and values. While a model
#' generates, its cache holds K / N of the keys and values of multi-head attention, at
#' nearly the same quality. `num_key_value_heads = 1` is multi-query attention
#' (Shazeer 2019), K = N is multi-head attention.
#'
#' The layer replaces `keras3::layer_group_query_attention()`: it has the same
#' arguments and weights, and gives the same numbers.
#'
#' @inheritSection shapes Shapes
#' @inheritSection shapes Masks
#' @inheritSection shapes R functions
#'
#' @param object What the layer is applied to:
#'   * nothing, or `NULL`: returns the layer itself, to be called as
#'     `layer(query, value, key, attention_mask = ...)`;
#'   * a Keras tensor, a tensor of the backend or an R array, (B, T, D):
#'     self-attention;
#'   * a list of two or three of them, query, value and key, in this order or named
#'     `query`, `value`, `key` in any order;
#'   * a Sequential model: the layer is added to it.
#' @param head_dim H, the size of each head.
#' @param num_query_heads N, the number of query heads.
#' @param num_key_value_heads K, the number of key/value heads: a divisor of N.
#' @param dropout Share of the attention weights that is dropped in training: at
#'   least 0, below 1.
#' @param use_bias Whether the projections add a bias.
#' @param flash_attention `NULL` chooses the kernel; `FALSE` forces the plain one,
#'   which holds the (T, S) scores; `TRUE` requires one that never holds them, and is an
#'   error that names the reason where there is none. The output is the same.
#' @param kernel_initializer,bias_initializer Initializers of the projections: the
#'   name of a Keras initializer, an initializer object, or an R function of the
#'   shape and, if it takes it, the `dtype`.
#' @param kernel_regularizer,bias_regularizer,activity_regularizer Regularizers of
#'   the kernels, the biases and the output: `NULL`, a name, a regularizer object, or
#'   an R function of a tensor that returns the penalty.
#' @param kernel_constraint,bias_constraint Constraints of kernels and biases:
#'   `NULL`, a name, a constraint object, or an R function of a tensor that returns
#'   the constrained one.
#' @param seed A whole number, the seed of the dropout; or `NULL`.
#' @param ... Arguments by name: `name` (a string), `trainable`, `dtype` (a string or a
#'   dtype policy) and `autocast` of a Keras layer; `query_mask`, `value_mask` and
#'   `key_mask`, logical matrices (B, T) or (B, S), `TRUE` for a token and `FALSE` for
#'   padding, which go to the call.
#' @param value,key Tensors or arrays (B, S, D) for cross-attention, where `object`
#'   is the query.
#' @param sliding_window `NULL`, or W: a query attends to keys fewer than W positions
#'   away (Beltagy et al. 2020).
#' @param use_gate Whether a sigmoid gate computed from the query multiplies each
#'   head's result (Qiu et al. 2025): `TRUE` or `"element"`, a gate for each of its numbers, or
#'   `"head"`, one for each head.
#' @param position `NULL`, or a position encoding: a `position_*()` object.
#' @param qk_norm Whether and how projected queries and keys are normalised, with a learned
#'   scale (Henry et al. 2020): `FALSE`; `TRUE` or `"rms"`, each head by its root mean square;
#'   `"layer"`; `"l2"`; or a list, see the section Norms.
#' @param logit_soft_cap `NULL`, or c: the logits become `c * tanh(logits / c)` before
#'   masks are applied (Gemma Team 2024).
#' @param attention_sink Whether each query head has a learned logit in the softmax's
#'   denominator, so that it can attend to nothing (Xiao et al. 2023).
#' @param value_norm Whether each projected value head is divided by its root mean square,
#'   without a learned scale, as in Gemma 4.
#' @param use_key_as_value Whether the projected keys are the values too, before their norm and
#'   position are applied, as in Gemma 4. The layer then has no projection of values,
#'   `value_norm` is of the keys, and a call has no `key` other than its `value`.
#' @param scale The factor of the logits: `NULL` for 1 / sqrt(H), a number, or `"learned"`:
#'   each of the H features of a head has a learned factor, which is at first 1 / sqrt(H) (Das
#'   et al. 2024).
#' @param query_scale `NULL`, or [scale_by_position()]: a factor of the queries that grows with
#'   their position.
#' @param key_value_of `NULL`, or another attention layer of the model, made by this function or
#'   [layer_multi_head_attention()], that was called before on the same tokens: its keys and
#'   values are used, with its norm and position, and this layer has no projections of them
#'   (Gemma 3n; Sun et al. 2024). Both layers need the same key/value heads. While a model
#'   generates, one cache holds them for both.
#' @param mask `NULL`, or a rule of positions such as
#'   `mask_causal() & (mask_window(256) | mask_sinks(4))`: a [mask_causal()] object or one
#'   like it, which holds beside all other masks. The layer keeps it.
#' @param attention_mask A logical array, `TRUE` where a query attends to a key, of a
#'   shape that broadcasts to (B, N, T, S): (T, S), (B, T, S), (B, 1, T, S) or
#'   (B, N, T, S).
#' @param attention_bias Numbers that are added to the logits, of a shape that
#'   broadcasts to (B, N, T, S).
#' @param segment_ids (B, T) whole numbers: a token attends to its own segment only; 0
#'   is padding.
#' @param positions (B, T) numbers, the positions of the tokens: by default 0 to T - 1. They may
#'   be real numbers or times, see the section Positions. (B, T, axes) for a `position` with
#'   several axes, see [position_rotary()] and [position_relative()].
#' @param bidirectional (B, T) whole numbers: tokens with the same number above 0 attend to each
#'   other whatever `use_causal_mask`, `sliding_window` and `mask` say, as the image tokens of
#'   Gemma 3 and PaliGemma do within a causal model. Padding, segments and `attention_mask`
#'   still hold. For self-attention. Number the spans of a sequence in order: then keys that no
#'   query of a block sees are not computed, except by torch on a GPU and by XLA on TensorFlow.
#'   Memory stays linear in T.
#' @param use_causal_mask Whether a query attends only to keys up to its own position.
#'   In a Sequential model, or without `object`, the layer keeps it as its default.
#' @param return_attention_scores Whether to return the attention weights,
#'   (B, N, T, S), as well.
#' @param training Whether dropout is active; `NULL` leaves it to Keras.
#' @param key_value_from The output of the layer `key_value_of` in the same call. In a model it is
#'   found; on arrays, and where that layer is called several times, it must be given.
#'
#' @returns Depends on `object`: the layer; a tensor (B, T, D), or with
#'   `return_attention_scores = TRUE` the list
#'   `list(attention_output =, attention_scores =)` of (B, T, D) and (B, N, T, S); or
#'   the Sequential model, invisibly.
#'
#' @section Norms:
#' The list for `qk_norm` has some of these entries:
#'
#' * `type`: `"rms"` divides by the root mean square, `"layer"` subtracts the mean first,
#'   `"l2"` divides by the Euclidean norm;
#' * `over`: `"head"` normalises each head, `"width"` all heads of a token as one vector
#'   (OLMo 2); heads of such a layer cannot be pruned;
#' * `epsilon` (1e-6): added to the mean of squares, for `"l2"` to their sum;
#' * `after_position` (`FALSE`): whether the norm follows the position encoding;
#' * `offset` (0): added to the learned scale; 1 for Gemma's weights, which are used as 1 + w;
#' * `learned` (`TRUE`): `FALSE` leaves the scale out (Llama 4, after the position; what its
#'   code calls an L2 norm is `"rms"`);
#' * `per_head` (`FALSE`): whether each head has a scale (Cohere);
#' * `bias` (`FALSE`): whether a learned bias is added, for `"layer"`.
#'
#' @section Positions:
#' Positions are whole numbers or real numbers such as visit times or distances; position
#' encodings, `use_causal_mask` and `sliding_window` compare them in this unit. Two tokens at
#' the same position see each other under a causal mask. [position_relative()] counts real
#' distances without their fraction.
#'
#' `Date` and `POSIXct` values are days: (B, T) with the class of times (`dim(times) <- c(B, T)`;
#' `matrix()` drops the class), or a vector for one sequence that all samples share. The
#' earliest time of each sequence is subtracted first, so that fractions of a second remain.
#'
#' Real positions are computed with 64 bits on TensorFlow and torch. JAX has 32 bits, about 7
#' digits: positions that would become equal are an error, and near 20,000 the next number is
#' 0.002 away. Subtract an origin from such positions. The same holds for positions that are
#' an input of a model: its `Input()` has 32 bits, and rounds without an error. A layer whose
#' `dtype` has 16 bits takes real positions where it is called on arrays, not as inputs of a model.
#'
#' @section Errors:
#' Every error has the class `kerasattention_error`. Arguments are checked before
#' Python is started; the message names the argument, the rule and the value. An
#' exception of Python becomes one such condition: it has Python's message, and the
#' name of the exception in its field `python_class`.
#'
#' @references
#' Ainslie et al. (2023). GQA: Training Generalized Multi-Query Transformer Models
#' from Multi-Head Checkpoints. \doi{10.48550/arXiv.2305.13245}
#'
#' Shazeer (2019). Fast Transformer Decoding: One Write-Head is All You Need.
#' \doi{10.48550/arXiv.1911.02150}
#'
#' Beltagy et al. (2020). Longformer: The Long-Document Transformer.
#' \doi{10.48550/arXiv.2004.05150}
#'
#' Henry et al. (2020). Query-Key Normalization for Transformers.
#' \doi{10.48550/arXiv.2010.04245}
#'
#' Xiao et al. (2023). Efficient Streaming Language Models with Attention Sinks.
#' \doi{10.48550/arXiv.2309.17453}
#'
#' Gemma Team (2024). Gemma 2: Improving Open Language Models at a Practical Size.
#' \doi{10.48550/arXiv.2408.00118}
#'
#' Das et al. (2024). A Decoder-Only Foundation Model for Time-Series Forecasting.
#' \doi{10.48550/arXiv.2310.10688}
#'
#' Sun et al. (2024). You Only Cache Once: Decoder-Decoder Architectures for Language Models.
#' \doi{10.48550/arXiv.2405.05254}
#'
#' Qiu et al. (2025). Gated Attention for Large Language Models.
#' \doi{10.48550/arXiv.2505.06708}
#'
#' @seealso [layer_multi_head_attention()], [attention_sitrep()]
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#'
#' # In a model: 8 query heads share 2 key/value heads.
#' tokens <- keras$Input(shape = list(NULL, 32L))
#' output <- tokens |>
#'   layer_group_query_attention(
#'     head_dim = 4,
#'     num_query_heads = 8,
#'     num_key_value_heads = 2,
#'     use_causal_mask = TRUE
#'   )
#' model <- keras$Model(tokens, output)
#' output$shape
#'
#' # A second layer that uses the keys and values of the first one.
#' first <- layer_group_query_attention(NULL, 4, 8, 2, use_bias = FALSE)
#' second <- layer_group_query_attention(
#'   NULL,
#'   head_dim = 4,
#'   num_query_heads = 8,
#'   num_key_value_heads = 2,
#'   use_bias = FALSE,
#'   key_value_of = first
#' )
#' output <- second(first(tokens))
#' second
#'
#' # On R arrays, B = 2, T = 5, D = 32, with the scores (B, N, T, S).
#' x <- array(rnorm(2 * 5 * 32), c(2, 5, 32))
#' result <- x |>
#'   layer_group_query_attention(4, 8, 2, return_attention_scores = TRUE)
#' dim(as.array(result$attention_output))
#' dim(as.array(result$attention_scores))
#'
#' # The layer by itself, called with a mask: no query attends to the last key.
#' layer <- layer_group_query_attention(
#'   head_dim = 4,
#'   num_query_heads = 8,
#'   num_key_value_heads = 2
#' )
#' mask <- matrix(TRUE, 5, 5)
#' mask[, 5] <- FALSE
#' dim(as.array(layer(x, attention_mask = mask)))
#' layer
layer_group_query_attention <- function(
  object,
  head_dim,
  num_query_heads,
  num_key_value_heads,
  dropout = 0,
  use_bias = TRUE,
  flash_attention = NULL,
  kernel_initializer = "glorot_uniform",
  bias_initializer = "zeros",
  kernel_regularizer = NULL,
  bias_regularizer = NULL,
  activity_regularizer = NULL,
  kernel_constraint = NULL,
  bias_constraint = NULL,
  seed = NULL,
  ...,
  value = NULL,
  key = NULL,
  sliding_window = NULL,
  use_gate = FALSE,
  position = NULL,
  qk_norm = FALSE,
  logit_soft_cap = NULL,
  attention_sink = FALSE,
  value_norm = FALSE,
  use_key_as_value = FALSE,
  scale = NULL,
  query_scale = NULL,
  key_value_of = NULL,
  mask = NULL,
  attention_mask = NULL,
  attention_bias = NULL,
  segment_ids = NULL,
  positions = NULL,
  bidirectional = NULL,
  use_causal_mask = FALSE,
  return_attention_scores = FALSE,
  training = NULL,
  key_value_from = NULL
) {
  check_layer_dots(list(...))
  object <- if (missing(object)) NULL else object
  hint <- sizes_hint(
    object,
    "head_dim",
    "num_query_heads",
    "num_key_value_heads"
  )
  check_required(head_dim, hint)
  check_required(num_query_heads, hint)
  check_required(num_key_value_heads, hint)
  arguments <- layer_arguments(environment(), list(...))
  check_layer_arguments(arguments)
  check_divisible_heads(num_query_heads, num_key_value_heads)
  check_width(num_query_heads, head_dim, c("num_query_heads", "head_dim"))
  inputs <- check_inputs(object, value, key)
  check_call(inputs, arguments, axes = c(3, 3), heads = num_query_heads)

  compose("GroupQueryAttention", object, inputs, arguments)
}
