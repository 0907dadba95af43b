# Two commands do all the set-up on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
# What only the tests of further targets and the linters need; some of it is large.
TESTED := $(VENV)/.installed-for-tests
# The CPU build of torch; a plain "torch" would pull gigabytes of GPU libraries.
TORCH := torch==2.13.0

.PHONY: demo test test-fast lint bench bench-gpu clean
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e '.[train,tune]'
	touch $@

$(TESTED): $(STAMP)
	$(PIP) -e '.[train,tune,opencl,webgpu,cross,cuda,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m bscompile.demo

test: $(TESTED) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(TESTED)
	$(BIN)/python -m pytest -m "not slow"

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(TESTED)
	$(BIN)/python -m benchmarks

# Builds anywhere; times where the GPU is, by a Python that has numpy, and torch for its peers.
GPU_PYTHON ?= python3
bench-gpu: $(TESTED)
	$(BIN)/python -m benchmarks.gpu build
	$(GPU_PYTHON) -m benchmarks.gpu run

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
