# `make compare` and `make test` set up all that they need in .venv, from pinned versions.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BASE := $(VENV)/base.stamp
CLI := $(VENV)/cli.stamp
ALL := $(VENV)/all.stamp

.PHONY: help compare test lint docs bench wheel clean

help:
	@echo "make compare   compare poolings on real digits; writes report.html (ARGS=... goes to everypool compare)"
	@echo "make test      run all tests (ARGS=... goes to pytest)"
	@echo "make lint      formatting, lint rules, types and bans"
	@echo "make docs      build the documentation in docs/_build/html"
	@echo "make bench     time every operation (ARGS=... goes to the benchmark)"
	@echo "make wheel     build a wheel in dist"
	@echo "make clean     remove the environment and everything that was built"

compare: $(CLI)
	$(BIN)/everypool compare $(ARGS)

test: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/bans

docs: $(ALL)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(ALL)
	$(BIN)/python -m benchmarks $(ARGS)

wheel: $(ALL)
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference .mypy_cache .pytest_cache .ruff_cache .hypothesis report.html

# torch and the build backend come first, pinned: a build in isolation would fetch a torch of its own
$(BASE): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("PYTHON must be Python 3.11 or later, got %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV), once; torch is a large download"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools
	@touch $@

$(CLI): $(BASE) pyproject.toml
	$(PIP) --no-build-isolation --editable '.[cli]'
	@touch $@

$(ALL): $(BASE) pyproject.toml
	$(PIP) --no-build-isolation --editable '.[all]'
	@touch $@ $(CLI)
