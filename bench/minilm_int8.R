# all-MiniLM-L6-v2 in float32 and, made int8, saved and loaded again. Prints one line of JSON.
rounds <- as.integer(commandArgs(TRUE)[[1]])
suppressMessages(source(
  system.file("examples", "minilm-model.R", package = "kerasattention")
))

sentences <- c(
  "A man is playing the guitar.",
  "The musician tunes his instrument.",
  "The cat sleeps on the sofa.",
  "Two dogs run across the field.",
  "The linear model fits the data badly.",
  "We estimate the mean from a sample.",
  "It will rain in the north tomorrow.",
  "The stock market fell sharply today."
)

exact <- load_minilm()
small <- load_minilm()
suppressWarnings(small$model$quantize("int8"))
expected <- embed(exact, sentences)
found <- embed(small, sentences)
file <- tempfile(fileext = ".keras")
small$model$save(file)
small$model <- keras$models$load_model(file)
stopifnot(max(abs(embed(small, sentences) - found)) < 1e-5)

megabytes <- function(model) {
  bytes <- reticulate::py_eval(
    "lambda model: sum(w.nbytes for w in model.get_weights())"
  )
  bytes(model) / 1e6
}
seconds <- function(minilm) {
  embed(minilm, sentences) # what the other has left in the cache counts nothing
  started <- as.numeric(Sys.time())
  embed(minilm, sentences)
  as.numeric(Sys.time()) - started
}
for (round in 1:3) {
  seconds(exact)
  seconds(small)
}
times <- vapply(
  seq_len(rounds),
  function(i) c(seconds(exact), seconds(small)),
  c(0, 0)
)
numbers <- function(x) {
  paste0("[", paste(format(x, digits = 8), collapse = ", "), "]")
}
cat(sprintf(
  '\n{"float32": %s, "int8": %s, "least_cosine": %.6f, "megabytes": %s}\n',
  numbers(times[1, ]),
  numbers(times[2, ]),
  min(rowSums(expected * found)),
  numbers(c(megabytes(exact$model), megabytes(small$model)))
))
