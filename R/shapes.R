#' Shapes and masks in kerasattention
#'
#' One letter stands for one size, in help pages, messages and the Python module.
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
#' `TRUE` means attend. R's logical matrices and arrays become boolean masks, and
#' numbers must be 1 and 0. Explicit masks, the masks that Keras's tensors carry,
#' causal masks and windows are combined: a query attends a key that all of them
#' allow. A query that no key is left for gets exactly zero from the attention.
#' `NA` is an error.
#'
#' @section R functions:
#' A function given as initializer, regularizer or constraint works in the session
#' that made it, in training and in copies of the model. A saved model does not hold
#' R code: loaded in another session it predicts as before; to train or evaluate it
#' there, build it with its R code and load the weights alone.
#'
#' @name shapes
#' @aliases masks
NULL
