# make demo   convert a small model on a local Ray, prove it, let it speak: STORIES=FOLDER with a trained one
# make bench  measure against cp: LAYERS=3, BENCH="--peer --rounds 5"
# make gpu    what a machine with a GPU shows, in less than 7 minutes: GPU="--device cpu --small" rehearses it elsewhere
# make torture  120 stops and successors, 60 changed inputs, 200 kills, 51 on Ray, a million mutated headers
# make mutants ROOM=layout  changes a room's code in one place at a time, and lists what no test noticed
# make test   what CI runs: lint, types, tests; with CI=true also the slow ones
# TORCH_INDEX=https://download.pytorch.org/whl/cpu  before any of them: torch from there, without the GBs for a GPU

PYTHON ?= python3
BIN := .venv/bin
MARKS := not slow and not peer and not gpu and not netns
# Files of tests are run beside each other, each by one process, as its tests share what they make once, in the order
# of tests/extent.py; a process that was killed is not started again, and the test in which it was is named at the end.
BESIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# What Python has compiled is kept, whatever the environment says: hundreds of processes would do it again, half of their time.
KEEPING := PYTHONDONTWRITEBYTECODE=
# Each computes with one thread: more of them would wait for each other, and take a fifth more processor time for it.
SETTINGS := OMP_NUM_THREADS=1 $(KEEPING)
# The pip of Python 3.11 itself takes half a minute more to find what fits together.
VENV = test -x $(1)/bin/pip || { $(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet --upgrade pip; }
ifeq ($(CI),true)
MARKS := not gpu
PEERS := peers
endif

help:
	@sed '/^$$/,$$d; s/^# //' $(firstword $(MAKEFILE_LIST))

.PHONY: help demo test lint format peers bench gpu gpu-wheels torture mutants clean

.venv/installed: pyproject.toml constraints.txt
	$(call VENV,.venv)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# What a demonstration needs, and no more; nothing is compiled that may never be imported.
.venv/demo: pyproject.toml constraints.txt
	$(call VENV,.venv)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --no-compile --constraint constraints.txt torch --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable .
	touch $@

demo: $(if $(wildcard .venv/installed),.venv/installed,.venv/demo)
	$(KEEPING) $(BIN)/python examples/demo.py $(STORIES)

test: lint $(PEERS)
	$(SETTINGS) $(BIN)/python -m pytest -q $(BESIDE) -m "$(MARKS)"

lint: .venv/installed
	$(BIN)/ruff check distconv tests examples
	$(BIN)/ruff format --check --quiet distconv tests examples
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format distconv tests examples

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks $(BENCH)

# Without the virtual environment: such a machine has what it needs, and may reach no index.
gpu:
	$(PYTHON) -m tests.gpu $(GPU)

# Beforehand, where there is an index: for a machine that has PyTorch, and not what distconv needs besides it.
gpu-wheels:
	$(PYTHON) -m tests.gpu.wheels .wheels

torture: .venv/installed
	$(BIN)/python -m tests.fuzz
	$(BIN)/python -m tests.torture
	$(BIN)/python -m tests.torture --store

mutants: .venv/mutants
	$(BIN)/python -m tests.mutants $(ROOM) $(MUTANTS)

.venv/mutants: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	touch $@

peers: $(patsubst tests/peers/%.txt,.peers/%/installed,$(wildcard tests/peers/*.txt))

.peers/%/installed: tests/peers/%.txt
	$(call VENV,.peers/$*)
	.peers/$*/bin/python -m pip install --quiet --requirement $<
	touch $@

clean:
	rm -rf .venv .peers .mutants build dist *.egg-info
