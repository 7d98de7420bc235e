# make demo   answer questions about a real clip with the lean runtime (no torch)
# make test   install what tests need and run all of them
# make check  linters and types
# Each sets up what it needs on a fresh machine, in its own virtual environment.

PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv-dev

.PHONY: demo test check format clean

demo: $(DEMO)/installed
	$(DEMO)/bin/python -m reflectrt.demo

test: $(DEV)/installed
	$(DEV)/bin/python -m pytest -n 2 --dist loadfile

check: $(DEV)/installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

format: $(DEV)/installed
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

$(DEMO)/installed: pyproject.toml constraints-lean.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --constraint constraints-lean.txt --editable .
	touch $@

$(DEV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(DEMO) $(DEV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
