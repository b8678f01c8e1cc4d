# Chat with SmolLM2 from R.
#
#   Rscript smollm2.R                        answers "What is the capital of France?"
#   Rscript smollm2.R Why is the sky blue?   answers that
#   source("smollm2.R")                      in the R console: a conversation; an empty
#                                            line ends it

source(system.file("examples", "smollm2-model.R", package = "kerasattention"))

# Prints the answer as its tokens come, and gives it back.
answer <- function(smollm2, messages, max_new_tokens = 200, ...) {
  prompt <- smollm2$tokenizer$encode(chat_prompt(messages))
  made <- integer()
  shown <- ""
  show_token <- function(token) {
    made <<- c(made, as.integer(token))
    text <- smollm2$tokenizer$decode(made)
    # A letter of several bytes may not be complete yet.
    if (!endsWith(text, "\ufffd")) {
      cat(substring(text, nchar(shown) + 1))
      utils::flush.console()
      shown <<- text
    }
    TRUE
  }
  generate_tokens(
    smollm2$model,
    prompt,
    max_new_tokens = max_new_tokens,
    stop_token = smollm2$tokenizer$stop,
    callback = show_token,
    ...
  )
  cat("\n")
  list(role = "assistant", content = shown, tokens = length(made))
}

say <- function(content) list(role = "user", content = content)

started <- Sys.time()
cli::cli_progress_step("Building SmolLM2-135M-Instruct and loading its weights")
smollm2 <- load_smollm2()
cli::cli_progress_done()

if (interactive()) {
  messages <- list()
  repeat {
    question <- readline("> ")
    if (question == "") {
      break
    }
    messages <- c(messages, list(say(question)))
    messages <- c(
      messages,
      list(answer(smollm2, messages)[c("role", "content")])
    )
  }
} else {
  question <- paste(commandArgs(trailingOnly = TRUE), collapse = " ")
  if (question == "") {
    question <- "What is the capital of France?"
  }
  cat("\n> ", question, "\n", sep = "")
  begun <- Sys.time()
  reply <- answer(smollm2, list(say(question)))
  seconds <- as.numeric(Sys.time() - begun, units = "secs")
  cli::cli_text(
    "{.emph {reply$tokens} tokens in {round(seconds, 1)} s on {keras$backend$backend()}, compilation included}"
  )
}
