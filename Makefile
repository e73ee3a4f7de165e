# make demo: tune the toybox's text encoder and write runs/demo/report.html.  make test: check everything.
# make docs: build the site, run its notebooks.  make wheel-demo: the demo from the built wheel, in an empty environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs wheel-demo setup

demo: setup
	rm -rf runs/demo
	$(BIN)/textcraftor train run_dir=runs/demo

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy textcraftor
	$(BIN)/pytest -n 2

docs: setup
	$(BIN)/mkdocs build --strict
	$(BIN)/pytest --long tests/docs

wheel-demo: setup
	rm -rf dist build/wheel-demo
	$(BIN)/python -m build --wheel --no-isolation --outdir dist
	$(PYTHON) -m venv build/wheel-demo
	build/wheel-demo/bin/pip install --quiet --constraint constraints.txt torch
	build/wheel-demo/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/wheel-demo && bin/textcraftor train run_dir=demo

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
