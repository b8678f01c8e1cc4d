# Prompts: the token ids that a model continues.

# A cache is allocated for all rows and tokens at the start: greater sizes are mistakes, and
# would exhaust the memory.
longest_row <- 2^20

most_rows <- 2^14

check_prompts <- function(
  tokens,
  arg = caller_arg(tokens),
  call = caller_env()
) {
  rule <- "token ids: whole numbers of at least 0, in a vector, a matrix or a list of vectors"
  if (left_to_python(tokens, FALSE, rule, arg, call)) {
    return(invisible(tokens))
  }
  prompts <- if (is_plain_list(tokens)) tokens else list(tokens)
  several <- is_plain_list(tokens)
  if (length(prompts) == 0) {
    abort_argument(arg, rule, tokens, call = call)
  }
  for (i in seq_along(prompts)) {
    prompt <- prompts[[i]]
    name <- if (several) paste0(arg, "[[", i, "]]") else arg
    good <- is_plain_number(prompt) &&
      length(prompt) > 0 &&
      axes_of(prompt) <= 2
    if (!good) {
      hint <- if (is.character(prompt)) {
        "Cut the text into tokens first, with a tokenizer."
      }
      abort_argument(name, rule, prompt, hint, call)
    }
    hint <- "Leave them out: prompts of different lengths go into a list."
    check_no_na(prompt, hint, name, call)
    check_id_values(prompt, rule, name, call)
  }
  invisible(tokens)
}

as_prompts <- function(tokens) {
  if (is_plain_list(tokens)) lapply(tokens, as_ids) else as_ids(tokens)
}
