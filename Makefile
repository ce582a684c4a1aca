# `make help` lists the targets. Everything runs in two environments made here once:
#   .venv       everything, editable, at the exact versions of constraints.txt
#   .venv-bare  the device's install only (no PyTorch), for the tests of the bare tier
PYTHON ?= python3

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Two thread pools spinning on one machine cost more than they win (also where tests start servers).
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
BARE := .venv-bare/bin
READY := .venv/.ready
BARE_READY := .venv-bare/.ready
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
TEST_TOOLS := pytest hypothesis
INSTALL = python -m pip install -qq --constraint constraints.txt

.PHONY: help setup demo check check-slow aarch64-check lint types test test-bare docs wheel clean python-version

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=python3.x chooses the interpreter for the environments (3.11 or newer)"

setup: $(READY) $(BARE_READY)  ## make both environments (the other targets do so when needed)

demo: $(READY)  ## the whole path with real processes: export, server, edge, one answer, the bytes
	@$(BIN)/python examples/demo/run.py

check: lint types test test-bare  ## what CI runs: lint, types, tests of the full and the bare tier

check-slow: $(READY)  ## the slow tests: every install tier, wheel, old and new Python (needs a network)
	$(BIN)/python -m pytest -m slow

aarch64-check: $(READY)  ## the device's install on an emulated aarch64, beside this machine (needs root)
	$(BIN)/python -m tests.aarch64

lint: $(READY)  ## ruff
	$(BIN)/ruff check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

test: $(READY)  ## tests in the full environment
	$(BIN)/python -m pytest

test-bare: $(BARE_READY)  ## tests of the device's install, without PyTorch
	QTL_TIER=bare $(BARE)/python -m pytest tests/core tests/edge tests/house

docs: $(READY)  ## regenerate docs/cli.md from the commands' --help
	@$(BIN)/python docs/generate_cli.py

wheel: $(READY)  ## dist/*.whl, with the shipped checkpoint inside
	@$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation -w dist . && ls -l dist/*.whl

clean:  ## remove environments, builds and caches
	rm -rf .venv .venv-bare build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python-version:
	@$(PYTHON) -c pass 2>/dev/null || { echo "make: $(PYTHON) does not run here; choose another: make PYTHON=python3.x TARGET" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: the pins of constraints.txt need Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "make: choose another: make PYTHON=python3.x TARGET   (the device install itself runs on 3.10)" >&2; exit 1; }

# The order of these installs matters: torch alone and pinned first, see constraints.txt.
$(READY): pyproject.toml constraints.txt | python-version
	@echo "setting up .venv: a few minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/$(INSTALL) pip hatchling
	@$(BIN)/$(INSTALL) $(TORCH)
	@$(BIN)/$(INSTALL) --no-build-isolation --group dev --editable '.[all,bench]'
	@touch $@

$(BARE_READY): pyproject.toml constraints.txt | python-version
	@echo "setting up .venv-bare: a minute, once"
	@$(PYTHON) -m venv .venv-bare
	@$(BARE)/$(INSTALL) pip hatchling
	@$(BARE)/$(INSTALL) --no-build-isolation $(TEST_TOOLS) --editable .
	@touch $@
