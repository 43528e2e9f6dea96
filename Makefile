# make demo: set up and explore a real model.   make test: set up and pass the whole suite.
# make test FILE=tests/unit/engine: only these.   make quick: those that take little, under a minute on two cores.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A local wheel folder named for pip (PIP_FIND_LINKS) is offered to uv under its own name.
UV := UV_FIND_LINKS="$$PIP_FIND_LINKS" VIRTUAL_ENV= $(BIN)/uv
INSTALL = $(UV) pip install --quiet --compile-bytecode -c constraints.txt --overrides overrides.txt
INPUTS := pyproject.toml constraints.txt overrides.txt

.PHONY: demo test quick faults mutants pictures dev lint package constraints clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/rankscope-tui demo --fresh

# A process a core and one more, for much of the time is waiting; each has one BLAS thread (tests/conftest.py).
PARALLEL := -n $(shell echo $$(( $$(nproc 2>/dev/null || echo 2) + 1 ))) --maxprocesses 8 --dist worksteal
# Where the environment forbids to keep what is compiled, each process compiles the tests anew: 5 s.
test quick: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.test
	$(BIN)/pytest $(if $(FILE),$(FILE),$(PARALLEL) --durations=10)

# Left out: inputs after public reports, explorers and heatmaps on a screen, `show` and pictures, broken and remote files, kills and other real
# processes, every family as it runs in transformers, the kernels' twins.
SLOW := faults cases app/test_app_* app/test_heatmap.py app/test_heatmap_overview.py app/test_themes.py app/test_start.py \
  app/test_pictures.py cli/test_cli_processes.py cli/test_cli_show_* unit/store/test_store_processes.py \
  unit/engine/test_torch_free.py unit/engine/test_families_traced.py unit/engine/test_two_stage.py

quick: $(VENV)/.test
	$(BIN)/pytest $(PARALLEL) $(SLOW:%=--ignore-glob='$(CURDIR)/tests/%')

# By hand. faults: every byte of a file flipped, where the suite takes some of them. mutants: the store, broken in each way
# of tests/mutants/store.txt, must fail a test; NAME=merge: those with that word in their name.
faults: $(VENV)/.test
	RANKSCOPE_FAULTS=all $(BIN)/pytest $(PARALLEL) tests/unit/store

mutants: $(VENV)/.test
	$(BIN)/python tests/mutants/run.py $(if $(NAME),'$(NAME)')

# The pictures that README and docs show: the explorer on the demo.
pictures: $(VENV)/.test $(VENV)/.demo
	$(BIN)/python tests/app/screenshot.py docs

dev: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The sdist and the wheel made of it, as an index would check them, and the demo run from that wheel in a clean environment.
package: $(VENV)/.dev
	rm -rf dist $(VENV)/package
	$(UV) build --quiet
	$(BIN)/twine check --strict dist/*
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
