#' Plot a mask
#'
#' @description
#' Draws which keys each query sees, with ggplot2: queries from top to bottom, keys from left
#' to right, positions counted from 0. No Python is needed.
#'
#' @param x,object A mask, made by [mask_causal()] and the like.
#' @param y,length T, the number of positions.
#' @param ... Not used.
#'
#' @returns `autoplot()` returns a ggplot object; `plot()` draws it and returns it invisibly.
#' @seealso [mask_causal()]
#' @export
#' @examplesIf requireNamespace("ggplot2", quietly = TRUE)
#' plot(mask_causal() & (mask_window(8) | mask_sinks(2)), 32)
plot.kerasattention_mask <- function(x, y = 32, ...) {
  check_dots(list(...), "y")
  check_whole_number(y, min = 1, max = 1024)
  draw(mask_picture(x, y))
}

#' @rdname plot.kerasattention_mask
#' @usage
#' \method{autoplot}{kerasattention_mask}(object, length = 32, ...)
#' @exportS3Method ggplot2::autoplot
autoplot.kerasattention_mask <- function(object, length = 32, ...) {
  check_dots(list(...), "length")
  check_whole_number(length, min = 1, max = 1024)
  mask_picture(object, length)
}

mask_picture <- function(mask, length, call = caller_env()) {
  check_ggplot2(call)
  at <- seq_len(length) - 1L
  visible <- visible_pairs(mask, at)
  frame <- expand.grid(query = at, key = at)
  frame$visible <- factor(as.vector(visible), c(TRUE, FALSE), c("yes", "no"))
  picture <- ggplot2::ggplot(
    frame,
    ggplot2::aes(.data$key, .data$query, fill = .data$visible)
  )
  picture +
    ggplot2::geom_tile(
      colour = if (length <= 64) "grey85" else NA,
      linewidth = 0.2
    ) +
    ggplot2::scale_fill_manual(
      values = c(yes = "#2171b5", no = "#ffffff"),
      drop = FALSE,
      name = "visible"
    ) +
    token_scale(ggplot2::scale_x_continuous, at, NULL) +
    token_scale(ggplot2::scale_y_reverse, at, NULL) +
    ggplot2::coord_fixed() +
    ggplot2::labs(
      x = "key",
      y = "query",
      title = paste(strwrap(format(mask), 60), collapse = "\n")
    ) +
    map_theme(FALSE)
}
