# A small transformer with grouped-query attention, written in R with pipes, learns to
# predict the next character of licence texts: those that every R installation carries.
# It is measured on a licence that it has never seen, against counting.
#
#   make demo                        or, where the package is installed,
#   KERAS_BACKEND=jax make demo      Rscript demo.R
#
# About two minutes on two cores. Writes a picture into output/.

library(kerasattention)
started <- Sys.time()
keras <- reticulate::import("keras")
layers <- keras$layers
keras$utils$set_random_seed(1L)

# ---- the text ----------------------------------------------------------------

licences <- file.path(R.home("share"), "licenses")
read_licence <- function(name) {
  lines <- readLines(file.path(licences, name), warn = FALSE)
  text <- iconv(paste(lines, collapse = " "), "UTF-8", "ASCII", sub = "")
  gsub("[[:space:]]+", " ", text)
}

held_out <- "Artistic-2.0"
learned <- setdiff(list.files(licences), c(held_out, "license.db"))
train_text <- paste(vapply(learned, read_licence, ""), collapse = " ")
test_text <- read_licence(held_out)

characters <- function(text) strsplit(text, "")[[1]]
vocabulary <- sort(unique(characters(paste(train_text, test_text))))
encode <- function(text) match(characters(text), vocabulary) - 1L
train_ids <- encode(train_text)
test_ids <- encode(test_text)

# Windows of `length` characters, and the same moved on by one: what is to be predicted.
windows <- function(ids, length, by) {
  starts <- seq(1, length(ids) - length, by = by)
  at <- outer(starts, seq_len(length) - 1, "+")
  list(
    x = array(ids[at], dim(at)),
    y = array(ids[at + 1], dim(at))
  )
}

context <- 96
train <- windows(train_ids, context, by = 64)
test <- windows(test_ids, context, by = context)

# ---- the model ---------------------------------------------------------------

# One transformer block: attention, then a feed-forward network, each added to what
# comes in. `attention` is a layer, so that its map can be drawn below.
block <- function(x, attention) {
  attended <- x |>
    (layers$LayerNormalization())() |>
    attention(use_causal_mask = TRUE)
  x <- x + attended
  changed <- x |>
    (layers$LayerNormalization())() |>
    (layers$Dense(4L * width, activation = "gelu"))() |>
    (layers$Dropout(0.1))() |>
    (layers$Dense(width))()
  x + changed
}

width <- 96L
attentions <- lapply(1:3, function(i) {
  layer_group_query_attention(
    head_dim = 16,
    num_query_heads = 6,
    num_key_value_heads = 2,
    position = position_rotary()
  )
})

tokens <- keras$Input(list(NULL), dtype = "int32")
hidden <- tokens |> (layers$Embedding(length(vocabulary), width))()
for (attention in attentions) {
  hidden <- hidden |> block(attention)
}
logits <- hidden |>
  (layers$LayerNormalization())() |>
  (layers$Dense(length(vocabulary)))()
model <- keras$Model(tokens, logits)

# ---- what it has to beat: counting -------------------------------------------

# Bits per character of the held-out text when each character is predicted from the
# `order` before it, by how often they were followed by which in the training text.
counting <- function(order) {
  size <- length(vocabulary)
  context_of <- function(ids) {
    at <- seq(order + 1, length(ids))
    Reduce(
      function(code, back) code * size + ids[at - back],
      rev(seq_len(order)),
      0
    )
  }
  codes <- function(ids) context_of(ids) * size + ids[-seq_len(order)]
  seen <- table(codes(train_ids))
  seen_contexts <- table(context_of(train_ids))
  count <- function(table, code) {
    found <- as.vector(table[as.character(code)])
    ifelse(is.na(found), 0, found)
  }
  # A tenth of a count for what was never seen.
  chance <- (count(seen, codes(test_ids)) + 0.1) /
    (count(seen_contexts, context_of(test_ids)) + 0.1 * size)
  -mean(log2(chance))
}
baseline <- counting(1)

# ---- training ----------------------------------------------------------------

epochs <- 8L
batch_size <- 32L
steps <- epochs * ceiling(nrow(train$x) / batch_size)
model$compile(
  optimizer = keras$optimizers$AdamW(
    keras$optimizers$schedules$CosineDecay(
      initial_learning_rate = 3e-4,
      decay_steps = as.integer(0.9 * steps),
      warmup_target = 3e-3,
      warmup_steps = as.integer(0.1 * steps)
    )
  ),
  loss = keras$losses$SparseCategoricalCrossentropy(from_logits = TRUE)
)

cat(sprintf(
  "%s: %s parameters learn from %s characters of %d licences\n",
  keras$backend$backend(),
  format(model$count_params(), big.mark = ","),
  format(length(train_ids), big.mark = ","),
  length(learned)
))
shows_bar <- isatty(stdout()) # a file gets a line an epoch instead of the bar
history <- model$fit(
  train$x,
  train$y,
  batch_size = batch_size,
  epochs = epochs,
  validation_data = reticulate::tuple(test$x, test$y),
  verbose = if (shows_bar) 1L else 2L
)
bits <- function(loss) as.numeric(unlist(loss)) / log(2)
learning <- data.frame(
  epoch = rep(seq_len(epochs), 2),
  bits = c(bits(history$history$loss), bits(history$history$val_loss)),
  text = rep(c("training text", "held-out text"), each = epochs)
)
result <- bits(model$evaluate(test$x, test$y, verbose = 0L))

cat(sprintf(
  "\nBits per character of the held-out %s licence, lower is better:\n",
  held_out
))
cat(
  sprintf(
    "  %4.2f  %s\n",
    c(log2(length(vocabulary)), baseline, counting(2), counting(3), result),
    c(
      "every character equally likely",
      "baseline: counting which character follows which",
      "the same with the two characters before",
      "the same with the three characters before",
      "transformer with grouped-query attention"
    )
  ),
  sep = ""
)

# ---- the picture -------------------------------------------------------------

# The map of the head that looks back furthest, on a piece of the held-out text.
shown <- regexpr("Distribution of Modified Versions", test_text) + 0:35
scores <- attention_scores(
  model,
  matrix(test_ids[shown], nrow = 1),
  tokens = sub(" ", "\u2423", vocabulary[test_ids[shown] + 1])
)
heads <- summary(scores)
furthest <- heads[which.max(heads$distance), ]
layer <- match(furthest$layer, heads$layer[!duplicated(heads$layer)])

map <- ggplot2::autoplot(scores[layer, furthest$head]) +
  ggplot2::facet_null() +
  ggplot2::labs(
    title = sprintf(
      "What head %d of layer %d attends to",
      furthest$head,
      layer
    ),
    subtitle = "Each row is a character of the held-out text; it sees itself and what is left of it",
    x = "attended character",
    y = NULL
  ) +
  ggplot2::theme(axis.text.x = ggplot2::element_text(angle = 0, hjust = 0.5))

levels <- data.frame(
  bits = c(baseline, counting(2)),
  label = c("baseline: one character before", "two characters before")
)
curve <- ggplot2::ggplot(learning, ggplot2::aes(epoch, bits, colour = text)) +
  ggplot2::geom_hline(
    ggplot2::aes(yintercept = bits),
    levels,
    linetype = "dashed",
    colour = "grey50"
  ) +
  ggplot2::geom_text(
    ggplot2::aes(epochs, bits, label = label),
    levels,
    colour = "grey30",
    hjust = 1,
    vjust = -0.6,
    size = 3.3
  ) +
  ggplot2::geom_line(linewidth = 0.9) +
  ggplot2::geom_point(size = 2) +
  ggplot2::scale_colour_manual(
    name = NULL,
    values = c("held-out text" = "#d95f02", "training text" = "#2171b5")
  ) +
  ggplot2::expand_limits(y = 1) +
  ggplot2::labs(
    title = "Predicting the next character of a licence",
    subtitle = sprintf(
      "%s is held out; bits per character, lower is better",
      held_out
    ),
    x = "epoch",
    y = "bits per character"
  ) +
  ggplot2::theme_minimal(base_size = 11) +
  ggplot2::theme(
    legend.position = "bottom",
    panel.grid.minor = ggplot2::element_blank()
  )

beside <- function(plot, left, width) {
  grid::grobTree(
    ggplot2::ggplotGrob(plot),
    vp = grid::viewport(x = left, width = width, just = "left")
  )
}

dir.create("output", showWarnings = FALSE)
path <- file.path("output", sprintf("demo-%s.png", keras$backend$backend()))
ggplot2::ggsave(
  path,
  grid::gList(beside(curve, 0, 0.44), beside(map, 0.46, 0.54)),
  width = 12,
  height = 6,
  dpi = 110,
  bg = "white"
)

cat(sprintf(
  "\nThe curves and one head's attention: %s (%.0f s in all)\n",
  normalizePath(path),
  as.numeric(difftime(Sys.time(), started, units = "secs"))
))
