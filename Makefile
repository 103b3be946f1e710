# Two commands are enough: `make demo` shows it, `make test` proves it.
# Both need Python 3.11, 3.12 or 3.13 with pip. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= all,docs,dev
OUT ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread for each BLAS call: two that fight for the cores make small products far slower.
THREADS := OMP_NUM_THREADS=1

.PHONY: help demo test test-all lint format types public-names bench peers docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        install, obtain SmolLM2, run the demonstration, say where the report is"
	@echo "make test        install, lint, types, every test that is not slow"
	@echo "make test-all    the same with the slow statistical tests"
	@echo "make bench       the measured figures"
	@echo "make peers       the comparison with other packages, in an environment of its own"
	@echo "make docs        build the documentation into site/"
	@echo "make lint        ruff and mypy alone"
	@echo "make clean       remove the environment, caches and builds"

# A second run installs nothing: the stamp is older than neither file.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else "lmppl needs Python 3.11 or later, and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m lmppl demo --out $(OUT)
	@echo "The report is in $(OUT)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(THREADS) $(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(THREADS) $(BIN)/python -m pytest

public-names: $(STAMP)
	$(BIN)/python tests/test_public_names.py --write
	$(BIN)/python tests/test_doc_facts.py --write

# Each file of tests/benchmarks prints its own table and is never a timed test.
bench: $(STAMP)
	@set -e; for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

# Other packages beside ours, in an environment of their own; no part of the suite.
peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet its-hub==1.2.0 treequest==0.3.3
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@set -e; for file in tests/peers/*.py; do echo "== $$file"; $(THREADS) .venv-peers/bin/python $$file; done

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-peers build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find lmppl inference graphs examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
