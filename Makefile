# make demo: tune the toybox's text encoder and write runs/demo/report.html.  make test: check everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test setup

demo: setup
	rm -rf runs/demo
	$(BIN)/textcraftor train run_dir=runs/demo

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy textcraftor
	$(BIN)/pytest -n 2

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
