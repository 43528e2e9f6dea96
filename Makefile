# make demo: set up and explore a real model.   make test: set up and pass the whole suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A local wheel folder named for pip (PIP_FIND_LINKS) is offered to uv under its own name.
UV := UV_FIND_LINKS="$$PIP_FIND_LINKS" VIRTUAL_ENV= $(BIN)/uv
INSTALL = $(UV) pip install --quiet --compile-bytecode -c constraints.txt --overrides overrides.txt
INPUTS := pyproject.toml constraints.txt overrides.txt

.PHONY: demo test dev lint package constraints clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/rankscope-tui demo

test: $(VENV)/.test
	$(BIN)/pytest

dev: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The sdist, the wheel made of it, and the demo run from that wheel in a clean environment.
package: | $(BIN)/uv
	rm -rf dist $(VENV)/package
	$(UV) build --quiet
	$(UV) venv --quiet --python $(PYTHON) $(VENV)/package
	$(INSTALL) --python $(VENV)/package "rankscope-tui[demo] @ $$(ls -d $(CURDIR)/dist/*.whl)"
	cd / && RANKSCOPE_STORE=$(CURDIR)/$(VENV)/package/store $(CURDIR)/$(VENV)/package/bin/rankscope scan demo -t 90

# Each stamp names the extra that is installed; a changed input installs again.
$(VENV)/.%: $(INPUTS) | $(BIN)/uv
	$(INSTALL) --python $(VENV) -e '.[$*]'
	touch $@

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9

constraints: | $(BIN)/uv
	echo torch==2.13.0 > $(VENV)/torch.txt
	head -1 constraints.txt > constraints.new
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	  --overrides overrides.txt -c $(VENV)/torch.txt pyproject.toml >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .src/*.egg-info
