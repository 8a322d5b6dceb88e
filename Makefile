# make demo: watch a small student inherit robustness from a robust teacher
# make test: the whole test suite
# Both create .venv, install what they need and build the C++ kernels, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNEL_SOURCES := $(wildcard kernels/cpu/*) setup.py CMakeLists.txt pyproject.toml

.PHONY: setup demo test lint bench bench-gpu clean

setup: $(VENV)/.installed

$(VENV)/.tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel cmake ninja
	touch $@

# torch first: the kernels are built against its headers, without build isolation.
$(VENV)/.installed: $(VENV)/.tools $(KERNEL_SOURCES)
	@echo "installing fastadaad and building its kernels; the first time takes some minutes"
	$(BIN)/python -m pip install --quiet 'torch>=2.10' torchvision
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@$(BIN)/python -c 'from fastadaad.doctor import summarize_ops; print(summarize_ops())'
	touch $@

demo: setup
	$(BIN)/fastadaad compare demo $(DEMO)

test: setup
	$(BIN)/python -m pytest $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m bench ops
	$(BIN)/python -m bench step
	$(BIN)/python -m bench step --pair small --method all

bench-gpu: setup
	$(BIN)/python -m bench ops --device cuda
	$(BIN)/python -m bench step --method all --device cuda

clean:
	rm -rf $(VENV) build *.egg-info kernels/*.so
