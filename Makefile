# Every target works in a fresh clone: the first one run makes .venv and installs rayrec into it. Nothing has to be
# activated. pip's own variables apply, such as PIP_EXTRA_INDEX_URL for a CPU-only torch.

.DEFAULT_GOAL := help

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/installed

# What the demo makes stays inside the checkout, unless RAYREC_HOME says otherwise.
DEMO_HOME := $(CURDIR)/.demo

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Older Pythons are passed over, as are version managers' shims that name one which is not installed.
$(STAMP): pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			[ -x $(BIN)/pip ] || $$python -m venv $(VENV) || exit 1; \
			exit 0; \
		fi; \
	done; \
	echo 'rayrec needs Python 3.11 or newer: neither python3.11 nor python3 is one. Install it and run make again.' >&2; \
	exit 1
	@echo 'Installing rayrec into $(VENV) (minutes, the first time)'
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install
install: $(STAMP)  ## Make .venv, and install rayrec and the development tools into it

.PHONY: demo
demo: $(STAMP)  ## Interaction logs to a live endpoint, on this machine
	@RAYREC_HOME="$${RAYREC_HOME:-$(DEMO_HOME)}" $(BIN)/rayrec demo

.PHONY: test
test: $(STAMP)  ## Run the tests
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: lint
lint: style types layers  ## Check style, types and layers

.PHONY: style
style: $(STAMP)  ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: $(STAMP)  ## Check types
	$(BIN)/mypy

.PHONY: layers
layers: $(STAMP)  ## Check that a room imports only from the rooms below it
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP)  ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench-%: $(STAMP)  ## Run benchmarks/%.py
	$(BIN)/python benchmarks/$*.py

.PHONY: clean
clean:  ## Remove what make, the tools and the demo made, .venv too
	rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find benchmarks platform tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
