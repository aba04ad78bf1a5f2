# Two commands do everything on a machine with Python 3.11 or newer:
#   make quickstart     sets up .venv and trains a small language model
#   make test           sets up .venv with the developers' tools and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all test-slurm matrix bench lint types docs wheel-check release-check clean

quickstart: $(VENV)/.installed
	$(BIN)/tenfold fit --config language_model/quickstart

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_FLAGS)

# On a real SLURM of two nodes, started and stopped by the tests: apt-get install slurm-wlm munge
test-slurm: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slurm tests/slurm $(PYTEST_FLAGS)

test-all: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not gpu and not slurm and not browser"

# Every quickstart with every overlay, and the table of recipes/README.md.
matrix: $(VENV)/.installed-dev
	-OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow --junitxml=build/matrix.xml tests/recipes/test_matrix.py
	$(BIN)/python tests/helpers/matrix_table.py build/matrix.xml

# tests/benchmarks/RESULTS.md: about half an hour on 2 idle cores, and 5 GB in /tmp for a while.
bench: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/run_all.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	@mkdir -p .mypy_cache/path && ln -sfn ../.. .mypy_cache/path/tenfold
	$(BIN)/mypy

# build/docs/index.html: the READMEs and a page for each module. A warning or a dead link is an error.
docs: $(VENV)/.installed-docs
	@mkdir -p build/docs_path/tenfold
	@for part in __init__.py recipes callbacks datamodules modules kernels; do \
		ln -sfn ../../../$$part build/docs_path/tenfold/$$part; done
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

wheel-check: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_wheel.py

# A clean clone, both commands, and the wheel in a virtual environment of its own.
release-check:
	tests/release_check.sh "$(PYTHON)"

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tenfold needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.installed
