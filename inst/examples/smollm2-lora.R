# Fine-tune SmolLM2 from R: low-rank factors on the query and value projections of all
# attention layers, 100 steps on a small text, everything else frozen.

source(system.file("examples", "smollm2-model.R", package = "kerasattention"))

steps <- 100L
length <- 64L
rows <- 2L

cli::cli_progress_step("Building SmolLM2-135M-Instruct and loading its weights")
smollm2 <- load_smollm2()
cli::cli_progress_done()

# The text: a licence that every R has, cut into rows of tokens.
text <- readLines(
  file.path(R.home("share"), "licenses", "Artistic-2.0"),
  warn = FALSE
)
ids <- smollm2$tokenizer$encode(paste(text, collapse = "\n"))
count <- (length(ids) - 1L) %/% length
at <- rep((seq_len(count) - 1L) * length, each = length) +
  rep(seq_len(length), count)
x <- matrix(ids[at], count, length, byrow = TRUE)
y <- matrix(ids[at + 1L], count, length, byrow = TRUE)

model <- smollm2$model
enable_lora(model, rank = 8)
model$compile(
  optimizer = keras$optimizers$AdamW(5e-4),
  loss = keras$losses$SparseCategoricalCrossentropy(from_logits = TRUE)
)
trainable <- sum(vapply(
  model$trainable_weights,
  function(w) prod(unlist(w$shape)),
  0
))
cli::cli_inform("{trainable} of {model$count_params()} parameters are trained.")

loss_before <- model$evaluate(x, y, batch_size = rows, verbose = 0L)
order <- sample(rep(seq_len(count), length.out = steps * rows))
history <- model$fit(
  x[order, ],
  y[order, ],
  batch_size = rows,
  epochs = 1L,
  shuffle = FALSE
)
loss_after <- model$evaluate(x, y, batch_size = rows, verbose = 0L)
cli::cli_alert_success(
  "Loss before {round(loss_before, 3)}, after {steps} steps {round(loss_after, 3)}"
)

file <- file.path(tempdir(), "smollm2-lora.weights.h5")
model$save_weights(file)
cli::cli_alert_info(
  "The weights, factors included: {.file {file}} ({round(file.size(file) / 1e6)} MB)"
)
