#' Join several processes
#'
#' Models over the devices of several processes, on one machine or many, with the JAX backend. Each
#' process runs the same script with its own `process_id`, and calls `attention_cluster()` first.
#' Distributions made afterwards have the devices of all processes.
#'
#' `local_rows()` gives the rows of the data that a process passes to `fit()`: its part of each
#' batch. `predict()` returns the predictions for the rows that the process gave.
#'
#' `save_gathered()` is for models whose weights are spread over processes, for which
#' `model$save()` is an error: called in every process, it writes one file, which any single machine
#' can load.
#'
#' A process that does not answer for 30 seconds counts as dead, and the others end with an error.
#'
#' @param coordinator The address of process 0 as `"host:port"`, the same in all processes.
#' @param num_processes The number of processes.
#' @param process_id The number of this process, from 0.
#' @param n The number of rows of all data.
#' @param global_batch The number of rows of a batch over all processes.
#' @inheritParams predict_padded
#' @param path The file, with the extension `.keras`.
#'
#' @returns `local_rows()` returns whole numbers, and leaves out the rows behind the last full
#'   batch; the others return `NULL`, invisibly.
#' @seealso [with_distribution()]
#' @export
#' @examples
#' \dontrun{
#' # In both processes, with process_id = 0 and 1:
#' attention_cluster("10.0.0.1:1234", num_processes = 2, process_id = 0)
#' keras <- reticulate::import("keras")
#' d <- keras$distribution$DataParallel(auto_shard_dataset = FALSE)
#' with_distribution(d, {
#'   model <- build()
#'   rows <- local_rows(nrow(x), global_batch = 64)
#'   model$fit(x[rows, ], y[rows, ], batch_size = 32L, shuffle = FALSE)
#'   save_gathered(model, "model.keras")
#' })
#' }
attention_cluster <- function(coordinator, num_processes, process_id) {
  check_required(coordinator)
  check_string(coordinator)
  check_required(num_processes)
  check_whole_number(num_processes, min = 1)
  check_required(process_id)
  check_whole_number(process_id, min = 0, max = num_processes - 1)
  invisible(call_python(
    "attention_cluster",
    coordinator,
    as_int(num_processes),
    as_int(process_id),
    doing = "join the processes"
  ))
}

#' @rdname attention_cluster
#' @export
local_rows <- function(n, global_batch) {
  check_required(n)
  check_whole_number(n, min = 1)
  check_required(global_batch)
  check_whole_number(global_batch, min = 1)
  rows <- call_python(
    "local_rows",
    as_int(n),
    as_int(global_batch),
    doing = "find the rows of this process"
  )
  as.integer(rows) + 1L
}

#' @rdname attention_cluster
#' @export
save_gathered <- function(model, path) {
  check_required(model)
  check_model(model)
  check_required(path)
  check_string(path)
  invisible(call_python(
    "save_gathered",
    model,
    path.expand(path),
    doing = "save the model"
  ))
}
