# Run by helper-devices.R, in a session with 8 devices.
suppressMessages(library(kerasattention))
keras <- reticulate::import("keras")
options(width = 90)

part <- function(name, code) {
  cat("== ", name, "\n", sep = "")
  # A message stands on one line, whatever its width.
  say <- function(cnd) cat(gsub("\n", " | ", conditionMessage(cnd)), "\n")
  tryCatch(code, error = say)
}

build <- function(query = 8, key_value = 2, length = 5L) {
  keras$utils$set_random_seed(3L)
  tokens <- keras$Input(reticulate::tuple(length), dtype = "int32")
  hidden <- keras$layers$Embedding(40L, 24L, name = "tok")(tokens)
  hidden <- layer_group_query_attention(
    hidden,
    head_dim = 3,
    num_query_heads = query,
    num_key_value_heads = key_value,
    name = "att"
  )
  hidden <- keras$layers$LayerNormalization(name = "norm")(hidden)
  keras$Model(tokens, keras$layers$Dense(40L, name = "head")(hidden))
}
tokens <- function(rows) matrix(seq_len(rows * 5L) %% 40L, rows, 5)

rules <- list("head/kernel" = c(NA, "model"), "tok/.*" = NULL)
d <- head_parallel(model = 4, rules = rules)
alone <- build()

part("mesh", {
  print(unlist(d$device_mesh$shape))
  made <- head_parallel(8, batch = 1, num_key_value_heads = 2)
  print(unlist(made$device_mesh$shape))
})
part("train", {
  x <- tokens(16)
  model <- with_distribution(d, {
    inside <- build()
    check_sharding(inside)
    inside$compile("sgd", "sparse_categorical_crossentropy")
    inside$fit(x, x, batch_size = 8L, verbose = 0L)
    inside
  })
  alone$compile("sgd", "sparse_categorical_crossentropy")
  alone$fit(x, x, batch_size = 8L, shuffle = FALSE, verbose = 0L)
  weights <- lapply(model$get_weights(), dim)
  cat(identical(weights, lapply(alone$get_weights(), dim)), "\n")
})
part("report", print(sharding_report(model)))
part("plan", {
  plan <- sharding_report(build, head_parallel(model = 4, rules = rules))
  cat(identical(as.list(plan), as.list(sharding_report(model))), "\n")
  str(unclass(attr(plan, "totals"))[c(
    "weights",
    "devices",
    "bytes_per_device"
  )])
  print(plan, n = 2)
  print(plan[1:2, c("path", "spec")])
})
part("padded", {
  model <- with_distribution(d, build())
  alone <- build()
  x <- tokens(7)
  found <- with_distribution(d, predict_padded(model, x))
  cat(dim(found), max(abs(found - alone$predict(x, verbose = 0L))) < 1e-5, "\n")
})
part("ragged", {
  with_distribution(d, model$predict(tokens(7), verbose = 0L))
})
part("after ragged", cat(length(model$get_weights()), "\n"))
part("outside", with_distribution(d, alone))
part("heads", with_distribution(head_parallel(8), build(40, 10)))
part("heads given", head_parallel(8, num_key_value_heads = 10))
part("devices", head_parallel(16))
part("seq", {
  long <- head_parallel(2, seq = 4)
  x <- matrix(seq_len(24) %% 40, 2, 12)
  predict <- function() build(length = 12L)$predict(x, verbose = 0L)
  cat(max(abs(with_distribution(long, predict()) - predict())) < 1e-5, "\n")
  with_distribution(long, build())
})
part("axis", head_parallel(8, rules = list(a = "heads")))
part(
  "compiled",
  sharding_report(
    function() {
      model <- build()
      model$compile("adam", "mse")
      model
    },
    d
  )
)
part("whole", {
  mesh <- keras$distribution$DeviceMesh(
    reticulate::tuple(2L, 4L),
    list("batch", "model"),
    keras$distribution$list_devices()
  )
  none <- keras$distribution$LayoutMap(mesh)
  whole <- keras$distribution$ModelParallel(layout_map = none)
  check_sharding(with_distribution(whole, build()))
})
part("unused", {
  with_distribution(
    head_parallel(8, rules = list(haed = NA)),
    check_sharding(build())
  )
})
part("map", {
  map <- attention_layout_map(mesh, 8)
  layout_set(map, "head/kernel", c(NA, "model"))
  layout <- keras$distribution$ModelParallel(layout_map = map)
  model <- with_distribution(layout, build(8, 8))
  check_sharding(model)
  report <- sharding_report(model)
  print(report[report$path %in% c("att/key/kernel", "head/kernel"), "spec"])
  layout_set(map, "head/kernel", c(NA, "model"))
})
part("few", attention_layout_map(mesh, 2))
part("mesh axes", layout_set(map, "other", "heads"))
part("error inside", {
  tryCatch(with_distribution(d, stop("stopped")), error = function(cnd) {
    cat(conditionMessage(cnd), is.null(keras$distribution$distribution()), "\n")
  })
})
part("rows", {
  path <- tempfile(fileext = ".keras")
  model <- with_distribution(d, {
    rows <- local_rows(19, 8)
    model <- build()
    save_gathered(model, path)
    model
  })
  loaded <- keras$models$load_model(path)
  cat(identical(loaded$get_weights(), model$get_weights()), "\n")
  print(rows)
})
part("rows outside", local_rows(8, 4))
part("cluster", attention_cluster("localhost:1", 2, 0))
