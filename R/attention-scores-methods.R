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

#' @export
`[[.attention_scores` <- function(x, layer, ...) {
  call <- rlang::current_env()
  at <- match_positions(layer, length(x$maps), names(x$maps), "layer", call)
  if (length(at) != 1) {
    abort_argument("layer", "one number or name", layer, call = call)
  }
  x$maps[[at]]
}

#' @export
names.attention_scores <- function(x) names(unclass(x)$maps)

#' @export
as.list.attention_scores <- function(x, ...) x$maps

#' @importFrom utils head
#' @export
head.attention_scores <- function(x, n = 6L, ...) {
  check_whole_number(n)
  x[utils::head(seq_along(x$maps), n)]
}

#' @importFrom utils tail
#' @export
tail.attention_scores <- function(x, n = 6L, ...) {
  check_whole_number(n)
  x[utils::tail(seq_along(x$maps), n)]
}

#' @export
as.array.attention_scores <- function(x, ...) {
  sizes <- unique(lapply(unname(x$maps), dim))
  if (length(sizes) != 1) {
    shapes <- vapply(sizes, show_shape, "")
    abort(
      "{.arg x} must have maps of one size to become an array, not of {shapes}.",
      hint = "Choose layers with `[` first, or take one array with `[[`.",
      arg = "x"
    )
  }
  values <- do.call(rbind, lapply(x$maps, as.vector))
  array(
    values,
    c(length(x$maps), sizes[[1]]),
    list(names(x), NULL, NULL, NULL, NULL)
  )
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
  labels <- list(x$tokens)
  frames <- Map(map_frame, x$maps, x$index, names(x$maps), labels)
  frame <- do.call(rbind, c(unname(frames), make.row.names = FALSE))
  frame$layer <- factor(frame$layer, unique(names(x$maps)))
  frame
}

map_frame <- function(map, index, layer, labels) {
  grid <- expand.grid(
    index[c("sample", "head", "query", "key")],
    KEEP.OUT.ATTRS = FALSE
  )
  frame <- cbind(layer = layer, grid, weight = as.vector(map))
  if (!is.null(labels)) {
    at <- function(axis) {
      labels_at(labels, index, axis, frame$sample, frame[[axis]])
    }
    frame$query_token <- at("query")
    frame$key_token <- at("key")
  }
  frame
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
    shown <- x$tokens[x$index[[1]]$sample[[1]], ]
    lines <- c(
      lines,
      paste0("tokens: ", shorten(paste(shown, collapse = " "), 60))
    )
  }
  lines
}
