# All is installed into .venv, in the versions of constraints.txt; no environment need be active.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# By path, where setuptools has finders by default. Those come last: a folder named duostore
# beside a script, such as a clone of this repository, would hide the package.
EDITABLE := --config-settings editable_mode=compat
REQUIREMENTS := pyproject.toml clients/python/pyproject.toml constraints.txt
# The first Python that is new enough. Looked for only when .venv is made.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(firstword $(MAKEFILE_LIST)) | tr '@' '\t' | expand -t 18

.PHONY: run
run: $(VENV)/embedded.stamp ## Start the demo on 127.0.0.1:50051, with all it needs
	@$(BIN)/duostore dev --config examples/proposals/duostore.toml

.PHONY: test
test: $(VENV)/dev.stamp stores ## Run every test, two at a time; ARGS goes to pytest, then one at a time
	@$(BIN)/python -m pytest $(or $(ARGS),-n 2 --no-loadscope-reorder)

.PHONY: test-long
test-long: $(VENV)/dev.stamp stores ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m long $(ARGS)

.PHONY: lint
lint: $(VENV)/dev.stamp ## Check style, types, imports, protos, and that generated code is fresh
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python -m tools.check_generated

.PHONY: format
format: $(VENV)/dev.stamp ## Format the sources and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/buf format --write

.PHONY: generate
generate: $(VENV)/dev.stamp ## Write the Python of the protos anew
	$(BIN)/buf generate

.PHONY: bench
bench: $(VENV)/dev.stamp stores ## Measure the service against real stores; ARGS goes to it
	@$(BIN)/python -m bench $(ARGS)

.PHONY: clean
clean: ## Remove .venv and all caches; the demo's data in .duostore is kept
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf server/*.egg-info clients/python/*.egg-info clients/python/build

# What the tests' servers run from; quick if all is there.
.PHONY: stores
stores: $(VENV)/dev.stamp
	@$(BIN)/python -m tools.setup_test_stores

# Without a Python in it, .venv and what its stamps say are worth nothing.
ifneq ($(shell test -x $(BIN)/python && echo there),there)
.PHONY: $(VENV)/embedded.stamp $(VENV)/dev.stamp
endif

$(VENV)/embedded.stamp: $(REQUIREMENTS)
	$(make-venv)
	@echo "Installing the server into $(VENV); the first time this takes about a minute ..."
	@$(PIP) install -c constraints.txt $(EDITABLE) -e clients/python -e '.[embedded]'
	@touch $@

$(VENV)/dev.stamp: $(REQUIREMENTS)
	$(make-venv)
	@echo "Installing the server and its tools into $(VENV); the first time this takes about a minute ..."
	@$(PIP) install -c constraints.txt $(EDITABLE) -e clients/python -e '.[embedded,dev]'
	@touch $@ $(VENV)/embedded.stamp

define make-venv
@test -x $(BIN)/python || { \
	python="$(PYTHON)"; \
	test -n "$$python" || { \
		echo "Python 3.11 or newer is needed. If there is one, name it: make PYTHON=.../python3" >&2; \
		exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$$python cannot make virtual environments. Install what it lacks:" >&2; \
		echo "  Debian, Ubuntu: sudo apt-get install python3-venv" >&2; \
		echo "or name another one: make PYTHON=.../python3" >&2; \
		exit 1; }; \
	"$$python" -m venv --clear $(VENV); }
endef
