#' Pack short sequences into rows
#'
#' @description
#' Packs several sequences into each row of a matrix, so that little of a batch is padding
#' (Krell et al. 2021). Each sequence, in order, is put whole into the first row that has
#' room for it.
#'
#' With `segment_ids`, tokens attend only to tokens of their own sequence; `positions` start
#' at 0 in each sequence. A layer then trains on the rows exactly as on the separate
#' sequences. [generate_tokens()] continues the last sequence of each row if `segment_ids` is an
#' input of the model and `positions` is not; [incremental_decoder()] takes both.
#'
#' @param sequences A list of vectors of whole numbers, the token ids of each sequence.
#' @param length The length of the rows, at least that of the longest sequence.
#'
#' @returns A list of three integer matrices with `length` columns:
#'   `tokens`, 0 for padding;
#'   `segment_ids`, the number of the sequence that a token belongs to, 0 for padding;
#'   `positions`, the position of a token in its sequence, from 0.
#'   The i-th sequence is `t(tokens)[t(segment_ids) == i]`.
#'
#' @references
#' Krell et al. (2021). Efficient Sequence Packing without Cross-contamination.
#' \doi{10.48550/arXiv.2107.02027}
#'
#' @seealso [layer_group_query_attention()] for its arguments `segment_ids` and
#'   `positions`
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' packed <- pack_sequences(list(11:13, 21:22, 31:36), length = 6)
#' packed
#'
#' x <- array(rnorm(2 * 6 * 16), c(2, 6, 16)) # embeddings of packed$tokens
#' x |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     position = position_rotary(),
#'     use_causal_mask = TRUE,
#'     segment_ids = packed$segment_ids,
#'     positions = packed$positions
#'   ) |>
#'   as.array() |>
#'   dim()
pack_sequences <- function(sequences, length) {
  check_required(sequences)
  check_required(length)
  check_whole_number(length, min = 1)
  check_sequences(sequences, length)
  check_row_length(length, sequences)
  tokens <- lapply(sequences, as_ids)
  packed <- call_python(
    "pack_sequences",
    unname(tokens),
    as_int(length),
    doing = "pack the sequences"
  )
  packed <- reticulate::import_builtins()$list(packed)
  names(packed) <- c("tokens", "segment_ids", "positions")
  lapply(packed, function(x) array(as.integer(x), dim(x)))
}

check_sequences <- function(sequences, length, call = caller_env()) {
  if (!is.list(sequences) || is.object(sequences) || length(sequences) == 0) {
    rule <- "a list of vectors of whole numbers"
    hint <- if (is.numeric(sequences)) "A single one: `list(sequence)`."
    abort_argument("sequences", rule, sequences, hint, call)
  }
  for (i in seq_along(sequences)) {
    arg <- paste0("sequences[[", i, "]]")
    check_sequence_tokens(sequences[[i]], arg, call)
    size <- length(sequences[[i]])
    if (size > length) {
      abort(
        "{.arg {arg}} must have at most {length} tokens, not {size}.",
        hint = "Cut it, split it, or raise `length`.",
        arg = arg,
        call = call
      )
    }
  }
}

# Rows longer than all sequences together hold padding only. Up to `longest_row` that is
# allowed.
check_row_length <- function(length, sequences, call = caller_env()) {
  most <- max(longest_row, sum(lengths(sequences)))
  if (length > most) {
    rule <- paste("a whole number of at most", format(most, scientific = FALSE))
    hint <- paste(
      "The sequences have",
      sum(lengths(sequences)),
      "tokens together."
    )
    abort_argument("length", rule, length, hint, call)
  }
}

check_sequence_tokens <- function(x, arg, call) {
  if (!is_plain_number(x) || length(x) == 0 || axes_of(x) > 1) {
    abort_argument(arg, "a vector of at least one whole number", x, call = call)
  }
  check_no_na(x, "Leave them out: a sequence holds its tokens only.", arg, call)
  check_id_values(x, "whole numbers of at least 0", arg, call)
}
