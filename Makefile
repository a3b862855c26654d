# Everything a checkout can do. Needs Python 3.11 or newer, make and pip; all else goes into .venv.
#
#   make demo    the main job: train, lose a node in the middle, compare with a fault-free run
#   make test    the whole suite
#   make lint    ruff and import-linter          make types   mypy, strict
#   make bench   the benchmark (beside Ray where Ray is installed)
#   make sim     10,000 seeds of the simulator
#   make chaos   every scenario on real processes, over several seeds (at most 30 minutes)
#   make chaos-sample   three of them (under 5 minutes)
#   make chaos-soak     until each fault has fired 20 times
#   make chaos-mutants   bugs put in, each of which the chaos suite has to find
#
# Arguments for the program behind a target: make test ARGS="-k lease"

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint types bench sim chaos chaos-sample chaos-soak chaos-mutants clean

# The first of these that really runs, is new enough and can make virtual environments. A version
# manager's shim may be on PATH and yet refuse to run, so each is tried.
CHECK := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	if "$$name" -c "$(CHECK)" >/dev/null 2>&1; then echo "$$name"; break; fi; done)

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --compile
COMPILE := $(RUN) -m compileall -q client gcs scheduler objectstore chaos

# Compiled modules make every process of a cluster start faster.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n 's/^#   //p' Makefile

$(RUN):
	@test -n "$(PYTHON)" || { echo "regrow needs Python 3.11 or newer with its venv module;" \
		"name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(RUN)
	$(INSTALL) -e '.[demo]'
	$(COMPILE)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(RUN)
	$(INSTALL) -e '.[demo,dev]'
	$(COMPILE)
	@touch $@

venv: $(VENV)/dev.stamp

demo: $(VENV)/demo.stamp
	$(VENV)/bin/regrow demo $(ARGS)

test: venv
	$(RUN) -m pytest $(ARGS)

lint: venv
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports

types: venv
	$(VENV)/bin/mypy -p regrow
	$(VENV)/bin/mypy tests examples benchmarks

bench: venv
	$(RUN) benchmarks/compare.py $(ARGS)

sim: venv
	$(VENV)/bin/regrow chaos simulate --seeds 10000 $(ARGS)

# Every scenario with one seed, then with the next as long as there is time.
chaos: venv
	$(VENV)/bin/regrow chaos run --all --seeds 3 --limit 27 --report chaos-report $(ARGS)

chaos-sample: venv
	$(VENV)/bin/regrow chaos run node_crash counters power_cut --duration 12 --limit 4 $(ARGS)

chaos-soak: venv
	$(VENV)/bin/regrow chaos run --all --until-fired 20 --report chaos-report $(ARGS)

chaos-mutants: venv
	$(RUN) -m regrow.chaos.mutation $(ARGS)

clean:
	rm -rf $(VENV) chaos-report dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
