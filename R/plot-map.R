# Parts that the plots of this package share.

draw <- function(plot) {
  print(plot)
  invisible(plot)
}

check_ggplot2 <- function(call) {
  if (!requireNamespace("ggplot2", quietly = TRUE)) {
    abort(
      "Plots need the package {.pkg ggplot2}.",
      hint = 'Install it: `install.packages("ggplot2")`.',
      call = call
    )
  }
}

# Queries downwards, as in a matrix. The labels of keys and queries are vectors, or NULL.
map_plot <- function(frame, keys, queries) {
  ggplot2::ggplot(
    frame,
    ggplot2::aes(.data$key, .data$query, fill = .data$weight)
  ) +
    ggplot2::geom_raster() +
    token_scale(ggplot2::scale_x_continuous, frame$key, keys) +
    token_scale(ggplot2::scale_y_reverse, frame$query, queries) +
    weight_scale("weight") +
    ggplot2::coord_fixed() +
    ggplot2::labs(x = "key", y = "query") +
    map_theme(!is.null(keys))
}

# The labels of one sample, where they are those of all layers in the plot.
axis_labels <- function(x, axis) {
  if (!is.null(x$tokens) && all(vapply(x$index, has_labels, NA, axis))) {
    x$tokens[x$index[[1]]$sample[[1]], ]
  }
}

# All labels up to 25 tokens, an even part of more.
token_scale <- function(scale, positions, tokens) {
  if (is.null(tokens)) {
    return(scale(breaks = whole_breaks, expand = c(0, 0)))
  }
  breaks <- sort(unique(positions))
  step <- ceiling(length(breaks) / 25)
  breaks <- breaks[seq(1, length(breaks), by = step)]
  labels <- tokens[breaks]
  labels[is.na(labels)] <- ""
  scale(breaks = breaks, labels = labels, expand = c(0, 0))
}

# Positions are whole numbers: no label between two of them.
whole_breaks <- function(limits) {
  breaks <- pretty(limits)
  breaks[breaks == trunc(breaks)]
}

weight_scale <- function(name, ...) {
  ggplot2::scale_fill_gradientn(
    colours = c("#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
    limits = c(0, NA),
    name = name,
    ...
  )
}

map_theme <- function(rotated) {
  ggplot2::theme_minimal(base_size = 11) +
    ggplot2::theme(
      panel.grid = ggplot2::element_blank(),
      panel.border = ggplot2::element_rect(fill = NA, colour = "grey70"),
      axis.text.x = if (rotated) {
        ggplot2::element_text(angle = 90, hjust = 1, vjust = 0.5)
      } else {
        ggplot2::element_text()
      }
    )
}
