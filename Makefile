# Everything a newcomer needs: `make demo`, `make test`, `make lint`, `make bench`, `make results`.
# Each sets up .venv by itself; the only network it uses is the package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp

.PHONY: help demo test lint format bench results wheel docs clean

help:
	@echo "make demo    drag a point of an example image and write the result to out/demo/"
	@echo "make test    run the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the code"
	@echo "make bench   time steps and edits against a plain synthesis"
	@echo "make results write docs/results.md from benchmarks/results/*.json"
	@echo "make wheel   build a wheel with the default checkpoint into dist/"
	@echo "make docs    build the documentation into build/site/"
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
	$(BIN)/autodrag eval speed --checkpoint checkpoints/critters --rounds 12

results: $(STAMP)
	$(BIN)/python benchmarks/results.py

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# Only this target needs the packages of the documentation.
$(VENV)/docs.stamp: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
