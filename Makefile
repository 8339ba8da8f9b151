# make demo   a model learns to sort digits, in about a minute after set-up
# make test   everything that is claimed, proven
# make docs   the site of the docs, under site/
# They make the virtual environment .venv first; the second time that takes a moment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types format docs clean setup

demo: setup
	rm -rf runs/demo runs/demo-task
	$(BIN)/grpokit task sort_digits --output_dir runs/demo-task
	$(BIN)/grpokit train --config recipes/demo.yaml $(DEMO_FLAGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(TEST_FLAGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

# torch alone first, at the version of constraints.txt: no other package may then choose a larger build of it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "grpokit needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the other packages into $(VENV): some minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]" -c constraints.txt
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) runs site build dist .pytest_cache .ruff_cache .hypothesis
