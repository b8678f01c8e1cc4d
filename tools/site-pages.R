# What tools/site.R does to the pages that pkgdown has made, and checks in them.

pages_of <- function(folder) {
  list.files(folder, "\\.html$", recursive = TRUE, full.names = TRUE)
}

edit_page <- function(path, edit) {
  page <- xml2::read_html(path, encoding = "UTF-8")
  edit(page)
  xml2::write_html(page, path, format = FALSE)
}

repair_pages <- function(folder) {
  for (path in pages_of(folder)) {
    edit_page(path, function(page) {
      remove_mathjax(page)
      name_logo(page)
      name_examples(page)
      fill_contents(page)
    })
  }
}

# Debian's rmarkdown adds a copy of MathJax by its path on this machine, and pkgdown one from the
# network. Formulas are written in HTML, see R/position-rotary.R; check_formulas() finds others.
remove_mathjax <- function(page) {
  xml2::xml_remove(xml2::xml_find_all(
    page,
    "//script[contains(@src, 'athjax')]"
  ))
}

# The templates leave it without words.
name_logo <- function(page) {
  logo <- xml2::xml_find_all(page, "//img[contains(@class, 'logo')]")
  xml2::xml_set_attr(logo, "alt", "The package's logo: a causal attention map")
}

# The pictures of examples have no words either: the code that drew them says most.
name_examples <- function(page) {
  for (picture in xml2::xml_find_all(
    page,
    "//span[contains(@class, 'r-plt')]/img"
  )) {
    code <- xml2::xml_find_first(picture, "preceding::span[@class='r-in'][1]")
    code <- trimws(gsub("\\s+", " ", xml2::xml_text(code)))
    xml2::xml_set_attr(picture, "alt", paste("Picture drawn by", code))
  }
}

# "On this page" is filled here, so that it is there without the network as well; see
# pkgdown/extra.js.
fill_contents <- function(page) {
  contents <- xml2::xml_find_first(page, "//nav[@id='toc'][not(ul)]")
  headings <- xml2::xml_find_all(
    page,
    "//main//h2[@id or ../@id][not(@data-toc-skip)]"
  )
  if (inherits(contents, "xml_missing")) {
    return(invisible())
  }
  if (length(headings) < 2) {
    return(xml2::xml_remove(contents))
  }
  list <- xml2::xml_add_child(
    contents,
    "ul",
    class = "nav navbar-nav flex-column"
  )
  for (heading in headings) {
    parent <- xml2::xml_attr(xml2::xml_parent(heading), "id")
    id <- xml2::xml_attr(heading, "id", default = parent)
    item <- xml2::xml_add_child(list, "li")
    title <- trimws(xml2::xml_text(heading))
    xml2::xml_add_child(
      item,
      "a",
      title,
      href = paste0("#", id),
      class = "nav-link"
    )
  }
}

# The index of articles: a card for each, with the first figure of the article if it has one.
add_pictures <- function(folder) {
  edit_page(file.path(folder, "index.html"), function(page) {
    for (title in xml2::xml_find_all(page, "//main//dl/dt")) {
      make_card(title, folder)
    }
  })
}

make_card <- function(title, folder) {
  href <- xml2::xml_attr(xml2::xml_find_first(title, ".//a"), "href")
  description <- xml2::xml_find_first(title, "following-sibling::dd[1]")
  card <- xml2::xml_add_sibling(
    title,
    "div",
    class = "article-card",
    .where = "before"
  )
  add_picture(card, href, folder)
  xml2::xml_add_child(card, title)
  xml2::xml_add_child(card, description)
  xml2::xml_remove(title)
  xml2::xml_remove(description)
}

add_picture <- function(card, href, folder) {
  article <- xml2::read_html(file.path(folder, href))
  figure <- xml2::xml_find_first(
    article,
    "//main//img[contains(@src, '_files/')]"
  )
  if (inherits(figure, "xml_missing")) {
    return(invisible())
  }
  link <- xml2::xml_add_child(card, "a", href = href, class = "article-picture")
  source <- file.path(dirname(href), xml2::xml_attr(figure, "src"))
  alt <- xml2::xml_attr(figure, "alt")
  xml2::xml_add_child(link, "img", src = sub("^\\./", "", source), alt = alt)
}

# Everything that is wrong, a line each.
check_pages <- function(folder) {
  paths <- normalizePath(pages_of(folder), winslash = "/")
  pages <- lapply(paths, xml2::read_html, encoding = "UTF-8")
  names(pages) <- paths
  found <- lapply(paths, function(path) {
    where <- sub(normalizePath(folder, winslash = "/"), "", path, fixed = TRUE)
    about <- c(
      check_links(path, pages),
      check_images(pages[[path]]),
      check_formulas(pages[[path]]),
      check_output(pages[[path]]),
      if (basename(path) == "faq.html") check_messages(pages[[path]])
    )
    if (length(about) > 0) paste0(where, ": ", about)
  })
  unlist(found)
}

check_links <- function(path, pages) {
  nodes <- xml2::xml_find_all(pages[[path]], "//*[@href or @src]")
  links <- c(xml2::xml_attr(nodes, "href"), xml2::xml_attr(nodes, "src"))
  links <- unique(links[
    !is.na(links) & !grepl("^(https?:|mailto:|data:|//)", links)
  ])
  broken <- !vapply(links, link_works, NA, path = path, pages = pages)
  if (any(broken)) paste("broken link", links[broken])
}

# A file that is there and, with #name, a place in it that is there.
link_works <- function(link, path, pages) {
  parts <- strsplit(link, "#", fixed = TRUE)[[1]]
  file <- sub("\\?.*$", "", utils::URLdecode(parts[1]))
  target <- if (nzchar(file)) file.path(dirname(path), file) else path
  if (dir.exists(target)) {
    target <- file.path(target, "index.html")
  }
  if (!file.exists(target)) {
    return(FALSE)
  }
  page <- pages[[normalizePath(target, winslash = "/")]]
  name <- if (length(parts) > 1) utils::URLdecode(parts[2]) else ""
  is.null(page) || !nzchar(name) || name %in% places_in(page)
}

places_in <- function(page) {
  c(
    xml2::xml_attr(xml2::xml_find_all(page, "//*[@id]"), "id"),
    xml2::xml_attr(xml2::xml_find_all(page, "//a[@name]"), "name")
  )
}

check_images <- function(page) {
  images <- xml2::xml_find_all(page, "//img")
  alt <- xml2::xml_attr(images, "alt")
  silent <- is.na(alt) | !nzchar(trimws(alt))
  if (any(silent)) {
    paste("image without alt text", xml2::xml_attr(images[silent], "src"))
  }
}

# LaTeX that only MathJax would render.
check_formulas <- function(page) {
  text <- xml2::xml_find_all(
    page,
    "//main//text()[not(ancestor::pre or ancestor::code)]"
  )
  formulas <- grep("\\\\[(\\[]|\\$\\$", xml2::xml_text(text), value = TRUE)
  if (length(formulas) > 0) paste("raw formula:", trimws(formulas))
}

# Warnings of code that has run, and paths of the machine that ran it.
check_output <- function(page) {
  output <- xml2::xml_text(xml2::xml_find_all(page, "//main//pre"))
  lines <- unlist(strsplit(output, "\n"))
  warnings <- grep("^#> Warning", lines, value = TRUE)
  if (length(warnings) > 0) paste("output:", warnings)
}

# The headings of the FAQ are parts of messages, and the code of the page causes these messages.
check_messages <- function(page) {
  squash <- function(x) gsub("[[:space:]]+", " ", gsub("\n#>", " ", x))
  output <- squash(xml2::xml_text(xml2::xml_find_all(page, "//main//pre")))
  messages <- squash(xml2::xml_text(
    xml2::xml_find_all(page, "//main//h2/code | //main//h3/code")
  ))
  found <- vapply(messages, function(x) any(grepl(x, output, fixed = TRUE)), NA)
  if (!all(found)) paste("no code causes the message", messages[!found])
}
