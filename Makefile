# Everything starts from a fresh clone: the first target that needs it makes .venv.
# Caches (models, artifacts) lie outside the checkout, see docs/env.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON ?= 3.6.0
OTHER := .venv-triton
MODEL = $$($(BIN)/python tools/fetch_model.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test triton lint clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with everything that compiling and testing needs

# torch first and exactly: what comes later must fit it, and must not bring another build of it. A CUDA
# build of torch brings its own triton.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[compile,cuda,dev,oracles]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[compile-gpu]'
	touch $@

demo: $(STAMP)  ## Compile a small model and ask it for the capital of France
	@model=$(MODEL) && $(BIN)/rusteeze -l info compile "$$model" && \
	echo "the model: $$model" && \
	$(BIN)/rusteeze generate "$$model" --chat --max-tokens 64 \
	  --system "Answer in English, in one sentence." -p "What is the capital of France?"

test: $(STAMP)  ## Run all tests; pytest's summary comes last
	@RUSTEEZE_TEST_MODEL="$(MODEL)" && export RUSTEEZE_TEST_MODEL && \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# 3.6 interprets with numpy below 2.4 only.
triton:  ## Run the tests of GPU kernels with another Triton (TRITON=3.6.0), in a .venv of its own
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet torch==2.13.0
	$(OTHER)/bin/python -m pip install --quiet --editable '.[compile,cuda,dev]' triton==$(TRITON) 'numpy<2.4'
	$(OTHER)/bin/python -m pytest -n 2 --dist loadfile tests/gpu $(TESTS)

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## Remove .venv and what tools left in the checkout; caches stay
	rm -rf $(VENV) $(OTHER) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
