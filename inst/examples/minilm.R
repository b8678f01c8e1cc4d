# Sentence embeddings from R: which of a dozen sentences mean the same, and what one head
# looks at. Writes two pictures to the folder named by the first argument, or here.

source(system.file("examples", "minilm-model.R", package = "kerasattention"))
library(ggplot2)

folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]

sentences <- c(
  "A man is playing the guitar.",
  "Someone plays a guitar on stage.",
  "The musician tunes his instrument.",
  "The cat sleeps on the sofa.",
  "A kitten is napping on the couch.",
  "Two dogs run across the field.",
  "The regression has a high residual variance.",
  "The linear model fits the data badly.",
  "We estimate the mean from a sample.",
  "It will rain in the north tomorrow.",
  "The forecast says showers up north.",
  "The stock market fell sharply today."
)

cli::cli_progress_step("Building the encoder and loading its weights")
minilm <- load_minilm()
cli::cli_progress_step("Embedding {length(sentences)} sentences")
embeddings <- embed(minilm, sentences)
cli::cli_progress_done()

similarity <- tcrossprod(embeddings)
nearest <- function(i) order(-similarity[i, ])[[2]]
for (i in c(1, 4, 7, 10)) {
  cli::cli_text(
    "{.emph {sentences[[i]]}} is nearest to {.emph {sentences[[nearest(i)]]}} ({round(similarity[i, nearest(i)], 2)})"
  )
}

frame <- expand.grid(row = seq_along(sentences), column = seq_along(sentences))
frame$similarity <- pmin(as.vector(similarity), 1)
picture <- ggplot(frame, aes(column, row, fill = similarity)) +
  geom_tile() +
  geom_text(
    aes(label = sprintf("%.2f", similarity), colour = similarity > 0.6),
    size = 2.6
  ) +
  scale_colour_manual(values = c("black", "white"), guide = "none") +
  scale_fill_gradientn(
    colours = c("#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
    limits = c(min(0, min(similarity)), 1)
  ) +
  scale_y_reverse(
    breaks = seq_along(sentences),
    labels = sentences,
    expand = c(0, 0)
  ) +
  scale_x_continuous(breaks = seq_along(sentences), expand = c(0, 0)) +
  coord_fixed() +
  labs(x = NULL, y = NULL, title = "Similarity of sentences", fill = "cosine") +
  theme_minimal(base_size = 11) +
  theme(panel.grid = element_blank())
similarity_file <- file.path(folder, "minilm-similarity.png")
ggsave(
  similarity_file,
  picture,
  width = 9,
  height = 6.5,
  dpi = 110,
  bg = "white"
)

sentence <- sentences[[5]]
scores <- attention_scores(
  minilm$model,
  minilm_inputs(minilm, sentence),
  layers = "block_1_attention",
  tokens = minilm_words(minilm, sentence)
)
# The sharpest head: the one whose queries look at the fewest keys.
heads <- summary(scores)
sharpest <- heads$head[which.min(heads$entropy)]
attention_file <- file.path(folder, "minilm-attention.png")
ggsave(
  attention_file,
  autoplot(scores[1, sharpest]),
  width = 6.5,
  height = 5.5,
  dpi = 110,
  bg = "white"
)
cli::cli_alert_success(
  "Wrote {.file {similarity_file}} and {.file {attention_file}}"
)
