# Every target sets itself up: from a fresh clone, `make test` is all it takes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Each test worker computes on one thread: the workers share the cores already. No test may download anything.
TEST_ENV   := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
TEST_ARGS  ?= -n 2
BENCHMARKS ?= $(addprefix benchmarks/,detect.py ways.py sweep.py edits.py lens.py tune.py processes.py)

.DEFAULT_GOAL := help
.PHONY: help setup test check lint format-check types imports format bench fuzz demo docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## the virtual environment .venv with the tested set (every other target calls this)

# `python -m venv` also mends an environment that was interrupted half-way; a whole one is used as it is.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Babelscope needs Python 3.11 or later; name one: make PYTHON=python3.11 $(or $(MAKECMDGOALS),setup)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

test: setup  ## all tests, on two processes (TEST_ARGS="tests/models -k rotary" for some of them)
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_ARGS)

check: setup  ## ruff, mypy and import-linter; all of them run, also after one has failed
	@$(MAKE) --no-print-directory --keep-going lint format-check types imports

lint: setup  ## ruff's rules
	$(BIN)/ruff check .

format-check: setup  ## is everything formatted?
	$(BIN)/ruff format --check .

types: setup  ## mypy --strict on the package
	$(BIN)/mypy

imports: setup  ## every import points down the layers
	$(BIN)/lint-imports

format: setup  ## mend what ruff can mend, then format
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

bench: setup  ## time and memory beside a plain forward pass
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

fuzz: setup  ## 10,000 random files and answers: no traceback, no hang, bounded memory (about 10 minutes)
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -W ignore tests/fuzz.py --files 10000

demo: setup  ## the quick study of the embedded model, offline; it ends with the path of the report
	HF_HUB_OFFLINE=1 $(BIN)/babelscope demo --out runs/demo

docs: setup  ## the guide and the reference, into build/site; fails on a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
