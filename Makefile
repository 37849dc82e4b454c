# `make demo` and `make test` need Python 3.11 to 3.13 (with pip, where uv is missing) and make.
.DEFAULT_GOAL := help
.PHONY: help demo test test-rest test-all lab docs env lint ruff types unit lock clean
SHELL := /bin/sh
# Some containers set it: each of a lab's processes would then compile all that it imports (3 s).
unexport PYTHONDONTWRITEBYTECODE

# The first Python that runs and fits; empty when there is none, then uv looks for one itself.
PYTHON := $(shell for name in python3.11 python3 python3.12 python3.13; do \
  if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1; then echo $$name; break; fi; done)

# uv from PATH, else the locked version in the user's cache.
UV_CACHED := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/labvoice/uv-$(shell \
  sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements.lock)
UV := $(or $(shell command -v uv 2>/dev/null || true),$(UV_CACHED)/bin/uv)

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --durations=15 --durations-min=1
# Two run at a time (JOBS=3: three), as most wait more than they compute. The tests of one file share
# what is slow.
# In the order of tests/conftest.py: by number of tests, the notebooks' few long ones would come last.
JOBS ?= 2
PAIRS := -n $(JOBS) --dist loadfile --no-loadscope-reorder
READY := .venv/labvoice.stamp

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(READY) ## launch, dispatch, join, talk, measure, write report.html
	$(BIN)/labvoice demo

test: ruff ## before a commit: lint, types, unit tests, each promise once on the real stack
	$(MAKE) --no-print-directory -j 2 types unit
	$(PYTEST) -m smoke $(PAIRS) tests/notebooks tests/stack

test-rest: $(READY) ## all tests that `make test` leaves out
	$(PYTEST) -m "not smoke" $(PAIRS) tests/notebooks tests/browser tests/stack tests/registry

test-all: test test-rest ## everything; needs npm, and Debian's chromium, nginx, prometheus and redis-server

lab: $(READY) ## JupyterLab on notebooks/
	$(BIN)/labvoice lab

docs: $(READY) ## docs/_build, with the notebooks executed
	LABVOICE_DOCS_EXECUTE=1 $(BIN)/sphinx-build -W --keep-going -q docs docs/_build

env: $(READY) ## make or update .venv from requirements.lock

lint: ruff types ## ruff, mypy, and what may import what

ruff: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(READY)
	$(PYTEST) $(PAIRS) tests/unit

lock: | $(UV) ## write requirements.lock anew for pyproject.toml
	$(UV) pip compile pyproject.toml --all-extras --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --output-file requirements.lock

clean: ## remove .venv and what tools have left here (not the user's cache)
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(READY): requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python "$(or $(PYTHON),>=3.11,<3.14)" .venv
	$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# `--target` needs neither a virtual environment nor root, and leaves the system's Python alone.
$(UV_CACHED)/bin/uv:
	@test -n "$(PYTHON)" || { echo "labvoice needs Python 3.11 to 3.13, and none is on PATH;" \
	  "install one, or install uv"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "$(PYTHON) has no pip to get uv with;" \
	  "install pip (Debian: python3-pip), or install uv"; exit 1; }
	@mkdir -p $(UV_CACHED)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(UV_CACHED)/requirements.txt
	$(PYTHON) -m pip install --quiet --no-deps --require-hashes --upgrade \
	  --target $(UV_CACHED) --requirement $(UV_CACHED)/requirements.txt
