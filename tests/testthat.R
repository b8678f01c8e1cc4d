library(testthat)
library(kerasattention)

test_check("kerasattention")
