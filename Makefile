# Two commands do all the set-up on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The CPU build of torch; a plain "torch" would pull gigabytes of GPU libraries.
TORCH := torch==2.13.0

.PHONY: demo test test-fast lint bench clean
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH) -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -e '.[train,tune,opencl,webgpu,cross,dev]' -c constraints.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python -m bscompile.demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
