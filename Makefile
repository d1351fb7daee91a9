# `make plan`: the main job.  `make test`: the whole suite.  `make check`: lint, format, types, import contract.
# Everything is installed in .venv; an install is repeated only when what it depends on has changed.

PYTHON ?= python3
JOBS   ?= 2
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip -qq --disable-pip-version-check install --constraint constraints.txt

.DEFAULT_GOAL := plan
.PHONY: plan test check clean

plan: $(VENV)/installed
	@$(VENV)/bin/meshwright plan

test: $(VENV)/installed-dev
	@$(VENV)/bin/python -m pytest --numprocesses $(JOBS) --basetemp $(VENV)/pytest

check: $(VENV)/installed-dev
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Meshwright in $(VENV) (torch is large: minutes, once)" >&2
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/installed
	@echo "Installing what the tests need in $(VENV)" >&2
	@$(PIP) --editable '.[dev,hf]'
	@touch $@
