# `make help` lists the targets. Everything runs in the project's own environment.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

IN := . ./activate &&
BACKENDS := tensorflow jax torch
BACKEND ?= $(BACKENDS)
ARGS ?=
PYTHON ?=
export PYTHON

.PHONY: help setup setup-peers demo demo-llm test test-quick test-python test-r test-rpy2 test-versions \
  test-nightly fuzz fuzz-r fuzz-files coverage mutants setup-quality build check document site lint typecheck \
  format bench readme clean clean-all

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: ## install all that is needed into .venv/ and .rlib/ (again and again if you like)
	@tools/setup.sh

setup-peers: ## also what the benchmarks compare with, and the R package keras3 from CRAN
	@tools/setup.sh --peers

demo: setup ## train a transformer on real text from R, about two minutes; KERAS_BACKEND=jax ...
	@$(IN) Rscript inst/examples/demo.R

# The shell reads the question from a variable: quotes, stars and `?` in it stay as they are.
demo-llm: export QUESTION := $(ARGS)
demo-llm: setup ## a chat model from R; ARGS="your question"
	@$(IN) Rscript inst/examples/smollm2.R "$$QUESTION"

test: setup ## all three suites: Python on each backend, R, and both in one process
	@tools/test.sh

test-quick: setup ## one backend, R and Python: the layers, the engine, the R bridge; BACKEND=jax
	@QUICK=1 tools/test.sh python-$(firstword $(if $(filter command line environment,$(origin BACKEND)),$(BACKEND),torch)) \
	  r-$(firstword $(if $(filter command line environment,$(origin BACKEND)),$(BACKEND),torch))

test-python: setup ## the Python suite; BACKEND=jax for one backend
	@tools/test.sh $(BACKEND:%=python-%)

test-r: setup ## the R suite; BACKEND=jax for another backend
	@tools/test.sh $(if $(filter command line environment,$(origin BACKEND)),$(BACKEND:%=r-%),r-tensorflow)

test-rpy2: setup ## R and Python in one process; BACKEND=torch for another backend
	@tools/test.sh $(if $(filter command line environment,$(origin BACKEND)),$(BACKEND:%=rpy2-%),rpy2-jax)

test-versions: setup ## part of the Python suite with older and newer Keras, NumPy and Python; ARGS="oldest nightly"
	@BACKEND=$(if $(filter command line environment,$(origin BACKEND)),$(BACKEND),torch) tools/test-versions.sh $(ARGS)

test-nightly: setup ## all tests of several devices and processes, about half an hour; ARGS="jax torch"
	@tools/test-nightly.sh $(ARGS)

fuzz: setup ## random layers, calls and models against a float64 reference; FUZZ_SECONDS=600 BACKEND=jax ARGS="--seed 3"
	@tools/fuzz.sh "$(BACKEND)" $(or $(FUZZ_SECONDS),360) $(ARGS)

FUZZ_BACKEND = $(if $(filter command line environment,$(origin BACKEND)),$(firstword $(BACKEND)),torch)

fuzz-r: setup ## the exported R functions with right and wrong values; FUZZ_SECONDS=600 BACKEND=jax ARGS="seed=3"
	@$(IN) KERAS_BACKEND=$(FUZZ_BACKEND) Rscript tests/fuzz/fuzz.R seconds=$(or $(FUZZ_SECONDS),120) $(ARGS)

fuzz-files: setup ## mutated files of weights and models through all readers; FUZZ_SECONDS=600 BACKEND=jax ARGS="--seed 3"
	@$(IN) python tests/fuzz/hostile_files.py --backend $(FUZZ_BACKEND) --seconds $(or $(FUZZ_SECONDS),120) $(ARGS)

setup-quality: ## also what `make coverage` and `make mutants` use
	@tools/setup.sh --quality

coverage: setup-quality ## lines and branches that the tests reach, in both languages; about an hour
	@tools/coverage.sh

mutants: setup-quality ## mutation testing of attend/ and layers/ on torch; ARGS="300 1": how many, seed
	@tools/mutants.sh $(ARGS)

build: setup ## the source package, kerasattention_VERSION.tar.gz
	@tools/build.sh

check: setup ## R CMD check --as-cran
	@tools/check.sh

document: setup ## write man/ and NAMESPACE with roxygen2
	@$(IN) Rscript -e 'roxygen2::roxygenise(load_code = "source")'

site: setup ## build the pkgdown site into docs/
	@$(IN) Rscript tools/site.R

lint: setup ## formatters, linters and type checks of both languages, changing nothing
	@tools/lint.sh

typecheck: setup ## pyright on the Python module; part of `make lint`
	@$(IN) basedpyright

format: setup ## format Python and R sources
	@$(IN) ruff format . && ruff check --fix-only . && air format .

bench: setup ## speed and memory against Keras's layers; ARGS="one case"
	@$(IN) python bench/run.py $(ARGS)

readme: setup ## knit README.Rmd
	@$(IN) Rscript -e 'rmarkdown::render("README.Rmd", quiet = TRUE)' && rm -f README.html

clean: ## remove what building, checking and testing left
	rm -rf .setup/check .setup/tests docs output build inst/python/build \
	  inst/python/*.egg-info .pytest_cache .ruff_cache .hypothesis *.tar.gz *.Rcheck
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all: clean ## also remove .venv/ and .rlib/
	rm -rf .venv .rlib .setup
