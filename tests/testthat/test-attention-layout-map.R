test_that("a map splits heads, and takes rules", {
  session <- devices_session()
  expect_equal(session$map[[1]], "[1] \"-, model, -\" \"-, model\"   ")
  expect_match(session$map[[2]], "`pattern` has a rule already")
})

test_that("what a map cannot split is refused", {
  session <- devices_session()
  expect_match(
    session$few,
    "2 key/value heads do not divide over the 4 devices"
  )
  expect_match(session$`mesh axes`, "names of the mesh's axes")
})

test_that("arguments are checked before Python", {
  expect_snapshot(error = TRUE, attention_layout_map())
  expect_snapshot(error = TRUE, attention_layout_map(8, 8))
  expect_snapshot(error = TRUE, layout_set(list(), "head/kernel", "model"))
})
