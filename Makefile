# make help lists the targets. Everything runs in .venv, which is made when it is needed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint types golden docs bench figures clean

help:           ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed-baselines       ## Deploy a network that reads text, run it, and report its speed and accuracy
	cd recipes/quickstart && $(BIN)/tc build
	cd recipes/quickstart && $(BIN)/python read_text.py
	cd recipes/quickstart && $(BIN)/tc report

test: lint types        ## Run the whole test suite: ruff, mypy, pytest
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/installed-dev             ## Check the style of the code
	$(BIN)/ruff check .

types: $(VENV)/installed-dev            ## Check the types of core, build, te and graph
	$(BIN)/mypy

golden: $(VENV)/installed-dev           ## Write the golden texts anew; look at what git says has changed
	$(BIN)/python -m pytest -n $(WORKERS) --update-golden

docs: $(VENV)/installed-dev              ## Write the pages of docs/ that are made from the code
	$(BIN)/python docs/generate.py

figures: $(VENV)/installed-baselines    ## Print the figures of docs/figures.md as measured on this machine
	$(BIN)/python benchmarks/figures.py

bench: $(VENV)/installed-baselines      ## Measure the recipes' models beside the rivals
	for recipe in paper ocr light; do (cd recipes/$$recipe && $(BIN)/tc report) || exit; done

clean:          ## Remove what was built here (the user's store stays: `tc gc` bounds it)
	rm -rf $(VENV) recipes/*/build recipes/*/.tc recipes/*/deployfile.lock .tc build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed-dev: pyproject.toml $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,baselines]"
	touch $@ $(VENV)/installed-baselines

$(VENV)/installed-baselines: pyproject.toml $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[baselines]"
	touch $@

# Debian's python3 comes without the module that makes environments.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); fix: make PYTHON=python3.11 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq python3-venv; \
	else \
	  echo "$(PYTHON) cannot make virtual environments; fix: sudo apt-get install python3-venv" >&2; exit 1; \
	fi
	$(PYTHON) -m venv $(VENV)
