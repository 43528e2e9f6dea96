# make demo: set up and explore a real model.   make test: set up and pass the whole suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A local wheel folder named for pip (PIP_FIND_LINKS) is offered to uv under its own name.
INSTALL = UV_FIND_LINKS="$$PIP_FIND_LINKS" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet -c constraints.txt --overrides overrides.txt
INPUTS := pyproject.toml constraints.txt overrides.txt

.PHONY: demo test dev lint constraints clean
demo: $(VENV)/.demo
	$(BIN)/rankscope-tui demo

test: $(VENV)/.test
	$(BIN)/pytest

dev: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each stamp names the extra that is installed; a changed input installs again.
$(VENV)/.%: $(INPUTS) | $(BIN)/uv
	$(INSTALL) -e '.[$*]'
	touch $@

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9

constraints: | $(BIN)/uv
	{ sed -n 1p constraints.txt; $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
	  --no-header --no-annotate --overrides overrides.txt -c <(echo torch==2.13.0) pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .src/*.egg-info
constraints: SHELL := /bin/bash
