#' Shapes and masks in kerasattention
#'
#' The letters for sizes in help pages, messages and the Python module, and the rules for
#' masks and R functions.
#'
#' @section Shapes:
#' B batch, T query length, S key/value length, D features, N query heads, K
#' key/value heads, G = N / K queries per key/value head, H head size.
#'
#' R arrays become tensors of 32-bit floats with their axes in the same order: an
#' array of `dim` `c(B, T, D)` is a tensor (B, T, D). `as.array()` turns a result
#' into an R array.
#'
#' @section Masks:
#' `TRUE` means attend, `FALSE` masks out. R's logical matrices and arrays become boolean
#' masks; numbers must be 1 and 0. Explicit masks, the masks of Keras tensors, causal masks
#' and windows are combined: a query attends to a key that all of them allow. Where all keys
#' of a query are masked out, the result of the attention is exactly zero. `NA` is an error.
#'
#' @section R functions:
#' An R function given as initializer, regularizer or constraint works in the session
#' that made it, in training and in copies of the model. A saved model does not contain
#' R code. Loaded in another session it predicts as before; to train or evaluate it there,
#' build the model with its R code and load only its weights.
#'
#' @name shapes
#' @aliases masks
NULL
