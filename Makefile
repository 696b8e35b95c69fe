# make demo   audit real data on this CPU, in under a minute       make test   every test
# make check  format, lint, types, fast tests                      make docs   regenerate configs/README.md, schema.json, attacks.md
# make ray    install Ray, for `run.engine: ray` and its tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# a process a core, one thread each; a file's tests stay together, so what they share is made once
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
test check: export OMP_NUM_THREADS = 1
test check: export MKL_NUM_THREADS = 1

.PHONY: demo ray test check lint format docs mutations clean

demo: $(VENV)/.installed
	$(BIN)/python main.py --cf configs/quickstart.yaml

ray: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

check: $(VENV)/.installed-dev lint
	$(BIN)/pyright
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed
	$(BIN)/python main.py --list config > configs/README.md
	$(BIN)/python main.py --schema > configs/schema.json
	$(BIN)/python main.py --list cards > documentation/attacks.md

mutations: $(VENV)/.installed-dev
	$(BIN)/python tests/mutations.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
