# What R adds to generation: the time of generate_tokens() less that of the Python function
# that it calls. Prints one line of JSON.
rounds <- as.integer(commandArgs(TRUE)[[1]])
# R compiles a function when it has been called a few times.
warm_up <- 5
suppressMessages(library(kerasattention))
reticulate::py_run_string(paste(
  "import sys, time",
  sprintf("sys.path.insert(0, %s)", deparse(file.path(getwd(), "bench"))),
  "from cases.decoding import small_model",
  "import kerasattention",
  "inner, spent = kerasattention.generate, []",
  "def generate(*args, **kwargs):",
  "    started = time.perf_counter()",
  "    result = inner(*args, **kwargs)",
  "    spent.append(time.perf_counter() - started)",
  "    return result",
  "model = small_model()",
  "kerasattention.generate = generate",
  sep = "\n"
))
python <- reticulate::import_main(convert = FALSE)
model <- python$model
prompt <- rep(7L, 32)
clock <- function() as.numeric(Sys.time())
total <- vapply(
  seq_len(rounds + warm_up),
  function(i) {
    started <- clock()
    generate_tokens(model, prompt, max_new_tokens = 256)
    clock() - started
  },
  0
)[-seq_len(warm_up)]
inside <- unlist(reticulate::py_to_r(python$spent))[-seq_len(warm_up)]
share <- median((total - inside) / total)
numbers <- function(x) {
  paste0("[", paste(format(x, digits = 8), collapse = ", "), "]")
}
cat(sprintf(
  '\n{"generate_tokens()": %s, "Python\'s part": %s, "share": %.6f}\n',
  numbers(total),
  numbers(inside),
  share
))
