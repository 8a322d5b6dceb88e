# make demo: watch a small student inherit robustness from a robust teacher
# make test-fast: every test that takes seconds; make test: all tests
# make docs: the documentation site, in build/site
# make setup: the program alone, for demo and trainings; make setup-dev: with what tests, checks and pages need.
# Each target creates .venv, installs what it needs and builds the C++ kernels, once.

PYTHON ?= python3
# The torch to install: make setup TORCH='torch==2.14.*'
TORCH ?= torch>=2.14
VENV := .venv
BIN := $(VENV)/bin
KERNEL_SOURCES := $(wildcard kernels/cpu/*) setup.py CMakeLists.txt pyproject.toml

# $(1): extras, such as [dev]. torch first: the kernels are built against its headers, without build isolation.
define install
	@echo "installing fastadaad$(1) and building its kernels; the first time takes some minutes"
	$(BIN)/python -m pip install --quiet '$(TORCH)' torchvision
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.$(1)'
	@$(BIN)/python -c 'from fastadaad.cli.machine_report import summarize_ops; print(summarize_ops())'
endef

.PHONY: setup setup-dev demo test test-fast coverage lint docs bench bench-gpu clean

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel cmake ninja
	touch $@

$(VENV)/.installed: $(VENV)/.tools $(KERNEL_SOURCES)
	$(call install,)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.tools $(KERNEL_SOURCES)
	$(call install,[dev])
	touch $(VENV)/.installed $@

demo: setup
	$(BIN)/fastadaad compare demo $(DEMO)

# make test TESTS=tests/ops/test_kl_grad.py runs part of the suite in one process, as a debugger needs it.
# The tensors of the tests are small: one thread for each of WORKERS processes. A file runs in one process; files with
# slow tests come first (tests/conftest.py).
TESTS ?=
WORKERS ?= $(if $(TESTS),0,2)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
FAST := -m 'not slow'
# tests/gpu on a CUDA device that is not there (pretend_gpu/); it says so if torch is a CPU build.
PRETEND_GPU := OMP_NUM_THREADS=1 $(BIN)/python -m pretend_gpu -m pytest --numprocesses $(WORKERS) tests/gpu tests/pretend_gpu

test: setup-dev
	$(if $(TESTS),,$(PRETEND_GPU))
	$(PYTEST) $(TESTS)

test-fast: setup-dev
	$(PYTEST) $(FAST) $(TESTS)

# make coverage FAST= counts the slow tests too.
coverage: setup-dev
	$(PYTEST) $(FAST) --cov=fastadaad --cov-report=term-missing:skip-covered $(TESTS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_prose.py
	$(BIN)/python -m pytest --quiet tests/test_layers.py

# Warnings are errors. The variable silences a notice about the successor of MkDocs.
docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

STEP := $(BIN)/python -m bench step

# One thread for the operations, whose shapes are small; all of them for the steps.
bench: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m bench ops --rewrite
	$(STEP) --pair cifar --modes compiled --rounds 5 --rewrite
	$(STEP) --pair cifar --method adaiad --modes compiled --rounds 3 --no-details
	$(STEP) --pair demo --pair fashion-mnist --rounds 20 --no-details
	$(STEP) --pair small --method all --rounds 7 --modes eager --no-details
	$(BIN)/python -m bench policies --speed
	$(BIN)/python -m bench measures --rounds 5
	$(BIN)/python -m bench data --rewrite
	$(BIN)/python -m bench roofline
	$(BIN)/python -m bench policies --draw
	$(BIN)/python -m bench data --draw
	$(BIN)/python -m bench speed

# What it measures is in bench/gpu_plan.py; how long that takes: python -m bench gpu --estimate A100
GPU := bench/results/gpu
bench-gpu: setup-dev
	$(BIN)/python -m bench ops --device cuda --rewrite --output $(GPU)/ops.csv
	$(BIN)/python -m bench data --device cuda --rewrite --output $(GPU)/data.csv
	$(BIN)/python -m bench gpu

clean:
	rm -rf $(VENV) build *.egg-info kernels/*.so
