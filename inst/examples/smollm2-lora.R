# Fine-tune SmolLM2 from R: low-rank factors on the query and value projections of all
# attention layers, 100 steps on a small text, everything else frozen.
#
#   Rscript smollm2-lora.R                   trains 100 steps, some minutes on two cores
#   Rscript smollm2-lora.R 20                trains 20

source(system.file("examples", "smollm2-model.R", package = "kerasattention"))

steps <- as.integer(c(commandArgs(trailingOnly = TRUE), "100")[[1]])
row_length <- 64L
batch_size <- 2L

cli::cli_progress_step("Building SmolLM2-135M-Instruct and loading its weights")
smollm2 <- load_smollm2()
cli::cli_progress_done()
model <- smollm2$model

# The text: the preamble and the first sections of a licence that every R has, cut into
# rows of tokens. Every row's targets are its tokens one place further.
lines <- readLines(
  file.path(R.home("share"), "licenses", "Artistic-2.0"),
  warn = FALSE
)
text <- substring(paste(lines, collapse = "\n"), 1, 4000)
ids <- smollm2$tokenizer$encode(text)
rows <- (length(ids) - 1L) %/% row_length
cut_rows <- function(ids) {
  matrix(ids[seq_len(rows * row_length)], rows, row_length, byrow = TRUE)
}
x <- cut_rows(ids)
y <- cut_rows(ids[-1])

# How it continues the text's first words, greedily.
start <- "The Artistic License 2.0\n\nPreamble\n\nThis license establishes"
prompt <- smollm2$tokenizer$encode(start)
continuation <- function() {
  made <- generate_tokens(model, prompt, max_new_tokens = 24)
  gsub("\\s+", " ", smollm2$tokenizer$decode(made[-seq_along(prompt)]))
}
mean_loss <- function(model) {
  model$evaluate(x, y, batch_size = batch_size, verbose = 0L)
}
compile <- function(model) {
  model$compile(
    optimizer = keras$optimizers$AdamW(5e-4),
    loss = keras$losses$SparseCategoricalCrossentropy(from_logits = TRUE)
  )
}

words_before <- continuation()
enable_lora(model, rank = 8)
compile(model)
trained <- sum(vapply(
  model$trainable_weights,
  function(w) {
    length(as.array(w))
  },
  0L
))
cli::cli_inform(
  "{prettyNum(trained, ',')} of {prettyNum(model$count_params(), ',')} parameters are trained, on {length(ids)} tokens."
)

loss_before <- mean_loss(model)
set.seed(1)
order <- unlist(replicate(ceiling(steps * batch_size / rows), sample(rows)))
order <- order[seq_len(steps * batch_size)]
started <- Sys.time()
history <- model$fit(
  x[order, ],
  y[order, ],
  batch_size = batch_size,
  epochs = 1L,
  shuffle = FALSE,
  verbose = if (interactive()) 1L else 2L
)
seconds <- as.numeric(Sys.time() - started, units = "secs")
loss_after <- mean_loss(model)
cli::cli_alert_success(
  "{steps} steps in {round(seconds)} s on {keras$backend$backend()}: loss {round(loss_before, 3)} before, {round(loss_after, 3)} after."
)
cli::cli_text("{.emph This license establishes ...}")
cli::cli_text("before: {words_before}")
cli::cli_text("after: {continuation()}")

# Saved weights are those of the model without factors, what was learned added to them: they
# load into a model as it was built.
file <- file.path(tempdir(), "smollm2-lora.weights.h5")
model$save_weights(file)
fresh <- smollm2_model(smollm2$config)
fresh$load_weights(file)
compile(fresh)
cli::cli_alert_success(
  "Saved ({round(file.size(file) / 1e6)} MB) and loaded into a new model: its loss is {round(mean_loss(fresh), 3)}."
)
unlink(file)
