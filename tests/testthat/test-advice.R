test_that("each thing that is missing has a line to type", {
  show <- function(found) {
    advice <- diagnose(found)
    writeLines(c(advice$found, advice$todo))
  }
  expect_snapshot({
    show(without("python"))
    show(without("keras"))
    show(without("keras", "backend_version"))
    show(utils::modifyList(found, list(keras = "3.9.2")))
    show(without("backend_version"))
    show(utils::modifyList(
      without("backend_version"),
      list(installed_backends = NULL)
    ))
    show(utils::modifyList(found, list(backend = "theano")))
    show(utils::modifyList(without("keras"), list(managed = TRUE)))
    show(utils::modifyList(
      without("keras"),
      list(python = "C:/Program Files/python.exe")
    ))
    show(found)
  })
})
