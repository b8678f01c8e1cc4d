"""One file of cases for each part of the package; a new file is found by itself."""
