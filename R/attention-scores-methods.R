# Methods for `attention_scores` objects; plots are in R/attention-plot.R.

#' @export
`[.attention_scores` <- function(x, layer, head, query, key, sample) {
  call <- rlang::current_env()
  chosen <- if (missing(layer)) {
    seq_along(x$maps)
  } else {
    match_positions(layer, length(x$maps), names(x$maps), "layer", call)
  }
  axes <- list(
    sample = if (!missing(sample)) sample,
    head = if (!missing(head)) head,
    query = if (!missing(query)) query,
    key = if (!missing(key)) key
  )
  x$maps <- x$maps[chosen]
  x$index <- x$index[chosen]
  for (i in seq_along(x$maps)) {
    x <- cut_map(x, i, axes, call)
  }
  x
}

cut_map <- function(x, i, axes, call) {
  map <- x$maps[[i]]
  for (axis in seq_along(axes)) {
    name <- names(axes)[[axis]]
    if (!is.null(axes[[axis]])) {
      size <- dim(map)[[axis]]
      at <- match_positions(axes[[axis]], size, NULL, name, call)
      map <- slice_axis(map, axis, at)
      x$index[[i]][[name]] <- x$index[[i]][[name]][at]
    }
  }
  x$maps[[i]] <- map
  x
}

slice_axis <- function(x, axis, at) {
  whole <- rep(list(TRUE), length(dim(x)))
  whole[[axis]] <- at
  do.call(`[`, c(list(x), whole, drop = FALSE))
}

# Positions as `[` of a vector takes them, but none may be out of range.
match_positions <- function(at, size, names, arg, call) {
  positions <- seq_len(size)
  names(positions) <- names
  plain <- is.atomic(at) && !is.object(at)
  found <- if (plain) tryCatch(positions[at], error = function(cnd) NA)
  if (length(found) == 0 || anyNA(found)) {
    rule <- paste0("of numbers from 1 to ", size)
    if (!is.null(names)) {
      rule <- paste0(rule, " or of ", paste0('"', names, '"', collapse = ", "))
    }
    abort_argument(arg, paste("a vector", rule), at, call = call)
  }
  unname(found)
}

#' @export
dim.attention_scores <- function(x) NULL

#' @export
length.attention_scores <- function(x) length(unclass(x)$maps)

#' @export
as.data.frame.attention_scores <- function(x, ...) {
  frames <- Map(map_frame, x$maps, x$index, names(x$maps))
  frame <- do.call(rbind, c(unname(frames), make.row.names = FALSE))
  frame$layer <- factor(frame$layer, unique(names(x$maps)))
  if (!is.null(x$tokens)) {
    frame$query_token <- x$tokens[frame$query]
    frame$key_token <- x$tokens[frame$key]
  }
  frame
}

map_frame <- function(map, index, layer) {
  grid <- expand.grid(
    index[c("sample", "head", "query", "key")],
    KEEP.OUT.ATTRS = FALSE
  )
  cbind(layer = layer, grid, weight = as.vector(map))
}

#' @export
summary.attention_scores <- function(object, ...) {
  frames <- Map(map_summary, object$maps, object$index, names(object$maps))
  frame <- do.call(rbind, c(unname(frames), make.row.names = FALSE))
  frame$layer <- factor(frame$layer, unique(names(object$maps)))
  frame
}

map_summary <- function(map, index, layer) {
  entropy <- row_entropy(map)
  distance <- row_distance(map, index)
  data.frame(
    layer = layer,
    head = index$head,
    entropy = apply(entropy, 2, mean),
    distance = apply(distance, 2, mean)
  )
}

# In bits: 0 for one key, log2(S) for equal weights. (sample, head, query)
row_entropy <- function(map) {
  terms <- ifelse(map > 0, -map * log2(map), 0)
  apply(terms, 1:3, sum)
}

# The mean distance between a query and the keys it attends to. (sample, head, query)
row_distance <- function(map, index) {
  apart <- abs(outer(index$query, index$key, `-`))
  apply(map, 1:2, function(weights) rowSums(weights * apart)) |>
    array(dim(map)[c(3, 1, 2)]) |>
    aperm(c(2, 3, 1))
}

#' @export
print.attention_scores <- function(x, ...) {
  cat(format(x, ...), sep = "\n")
  invisible(x)
}

#' @export
format.attention_scores <- function(x, ...) {
  count <- length(x$maps)
  lines <- paste0(
    "<attention_scores> of ",
    count,
    if (count == 1) " layer" else " layers"
  )
  table <- summary(x)
  for (i in seq_along(x$maps)) {
    size <- dim(x$maps[[i]])
    entropy <- table$entropy[table$layer == names(x$maps)[[i]]]
    lines <- c(
      lines,
      sprintf(
        "%s: %d head%s, %d x %d (queries x keys), %d sample%s, entropy %.2f to %.2f bits",
        names(x$maps)[[i]],
        size[[2]],
        plural(size[[2]]),
        size[[3]],
        size[[4]],
        size[[1]],
        plural(size[[1]]),
        min(entropy),
        max(entropy)
      )
    )
  }
  if (!is.null(x$tokens)) {
    lines <- c(
      lines,
      paste0("tokens: ", shorten(paste(x$tokens, collapse = " "), 60))
    )
  }
  lines
}
