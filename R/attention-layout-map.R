#' Rules for heads in a layout map of Keras
#'
#' `attention_layout_map()` makes a `keras$distribution$LayoutMap` that splits the heads of
#' attention layers, ours and Keras's, for a `keras$distribution$ModelParallel()` of your own.
#' [head_parallel()] needs no map, and can split fewer key/value heads than devices. It also splits
#' what a map cannot tell from the path of a weight: the tables of [position_relative_keys()], and
#' the scales of norms that are of each head.
#'
#' `layout_set()` adds a rule to a map. In R, `map[["pattern"]] <- axes` would change an attribute
#' of the Python object and leave the map as it is, without an error.
#'
#' @param mesh A `keras$distribution$DeviceMesh` that has an axis `"model"`.
#' @param num_key_value_heads The number of key/value heads of all attention layers: 1, or a
#'   multiple of the number of devices of the axis.
#' @param map A `keras$distribution$LayoutMap`.
#' @param pattern A regular expression that matches the whole path of weights.
#' @param axes For each axis of the weight the name of the axis of the mesh over which it is split,
#'   or `NA`.
#'
#' @returns The map; `layout_set()` returns it invisibly, and changes it in place.
#' @export
#' @examplesIf kerasattention:::can_run_on_jax()
#' distribution <- reticulate::import("keras")$distribution
#' devices <- distribution$list_devices()
#' shape <- reticulate::tuple(1L, length(devices))
#' mesh <- distribution$DeviceMesh(shape, c("batch", "model"), as.list(devices))
#'
#' map <- attention_layout_map(mesh, num_key_value_heads = length(devices))
#' layout_set(map, "head/kernel", c(NA, "model"))
#' distribution$ModelParallel(layout_map = map, batch_dim_name = "batch")
attention_layout_map <- function(mesh, num_key_value_heads) {
  check_required(mesh)
  check_distribution_class(mesh, "DeviceMesh")
  check_required(num_key_value_heads)
  check_whole_number(num_key_value_heads, min = 1)
  call_python(
    "attention_layout_map",
    mesh,
    as_int(num_key_value_heads),
    doing = "make the layout map"
  )
}

#' @rdname attention_layout_map
#' @export
layout_set <- function(map, pattern, axes) {
  check_required(map)
  check_distribution_class(map, "LayoutMap")
  check_required(pattern)
  check_string(pattern)
  check_required(axes)
  check_mesh_axes(axes)
  call_python(
    "layout_set",
    map,
    pattern,
    as_mesh_axes(axes),
    doing = "add the rule"
  )
  invisible(map)
}

# A class of `keras$distribution`.
check_distribution_class <- function(
  x,
  name,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (!inherits(x, paste0("keras.src.distribution.distribution_lib.", name))) {
    rule <- paste0("a `keras$distribution$", name, "`")
    abort_argument(arg, rule, x, call = call)
  }
  check_alive(x, arg = arg, call = call)
}
