# Draw the logo and the favicons: one head's causal attention in a hexagon.
#   Rscript tools/logo.R

colours <- c("#1c4f8f", "#2f7fc1", "#7fbce6", "#e8f3fb")
ink <- "#08306b"

hexagon <- function(radius) {
  angle <- (seq_len(6) - 0.5) * pi / 3
  list(x = radius * cos(angle), y = radius * sin(angle))
}

# Five queries, each attending itself and keys before it; an invention, but each row
# of weights sums to one.
weights <- rbind(
  c(1, 0, 0, 0, 0),
  c(0.3, 0.7, 0, 0, 0),
  c(0.6, 0.1, 0.3, 0, 0),
  c(0.1, 0.5, 0.1, 0.3, 0),
  c(0.05, 0.1, 0.5, 0.05, 0.3)
)

draw_cells <- function(left, top, size) {
  palette <- grDevices::colorRampPalette(colours)(101)
  for (query in 1:5) {
    for (key in seq_len(query)) {
      graphics::rect(
        left + (key - 1) * size,
        top - query * size,
        left + (key - 0.08) * size,
        top - (query - 0.92) * size,
        col = palette[round(100 * weights[query, key]^0.7) + 1],
        border = NA
      )
    }
  }
}

draw_logo <- function(text = TRUE) {
  graphics::par(mar = rep(0, 4), bg = "transparent")
  graphics::plot.new()
  graphics::plot.window(c(-1, 1), c(-1, 1), asp = 1)
  graphics::polygon(hexagon(0.99), col = "#2171b5", border = NA)
  graphics::polygon(hexagon(0.93), col = ink, border = NA)
  if (text) {
    draw_cells(-0.45, 0.62, 0.18)
    graphics::text(0, -0.47, "kerasattention", col = "white", cex = 2, font = 2)
  } else {
    draw_cells(-0.56, 0.56, 0.225)
  }
}

save_png <- function(path, pixels, ...) {
  dir.create(dirname(path), recursive = TRUE, showWarnings = FALSE)
  grDevices::png(
    path,
    pixels,
    pixels,
    res = 72 * pixels / 320,
    bg = "transparent",
    type = "cairo"
  )
  draw_logo(...)
  invisible(grDevices::dev.off())
}

# An .ico file is a header of 22 bytes before a PNG.
save_ico <- function(path, png, pixels) {
  bytes <- readBin(png, "raw", file.size(png))
  file <- file(path, "wb")
  on.exit(close(file))
  writeBin(c(0L, 1L, 1L), file, size = 2, endian = "little")
  writeBin(as.raw(c(pixels, pixels, 0, 0)), file)
  writeBin(c(1L, 32L), file, size = 2, endian = "little")
  writeBin(c(length(bytes), 22L), file, size = 4, endian = "little")
  writeBin(bytes, file)
}

save_png("man/figures/logo.png", 240)
favicon <- function(name) file.path("pkgdown/favicon", name)
for (pixels in c(16, 32)) {
  name <- sprintf("favicon-%1$dx%1$d.png", pixels)
  save_png(favicon(name), pixels, text = FALSE)
}
for (pixels in c(60, 76, 120, 152, 180)) {
  name <- sprintf("apple-touch-icon-%1$dx%1$d.png", pixels)
  save_png(favicon(name), pixels, text = FALSE)
}
copied <- file.copy(
  favicon("apple-touch-icon-180x180.png"),
  favicon("apple-touch-icon.png"),
  overwrite = TRUE
)
stopifnot(copied)
save_ico(favicon("favicon.ico"), favicon("favicon-32x32.png"), 32)
