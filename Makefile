# Development commands. Each target creates or updates .venv; the package index is the only network access.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp

.PHONY: help demo test lint format bench wheel clean

help:
	@echo "make demo    drag a point of an example image and write the result to out/demo/"
	@echo "make test    run the test suite"
	@echo "make lint    run ruff and mypy"
	@echo "make format  format the code with ruff"
	@echo "make bench   compare the time of a refiner step with that of a synthesis"
	@echo "make wheel   build a wheel with the default checkpoint in dist/"
	@echo "make clean   remove .venv and caches"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is required, but this is " + sys.version.split()[0])'
	@# An interrupted installation leaves a .venv without pip. Create it again.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/autodrag demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
