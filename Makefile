# Everything lives in .venv; remove that folder to start anew. PYTHON chooses the interpreter (3.10 or later).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# llama.cpp is compiled with its RPC back end, for which no further library is needed: the tests use it.
export CMAKE_ARGS := $(strip $(CMAKE_ARGS) -DGGML_RPC=on)
HAS_RPC := $(BIN)/python -c 'import llama_cpp; raise SystemExit(not llama_cpp.llama_supports_rpc())'
RECIPE := Makefile pyproject.toml setup.py constraints.txt finesteer_local/runtime/_tap.c
CLIENT := tests/ai_sdk/package-lock.json

.PHONY: demo test lint types contract docs clean

demo: $(VENV)/.stamp-run
	$(BIN)/finesteer-local demo

# What must be exact is tried on a worker, too.
ON_A_WORKER = $(shell grep -l 'usefixtures("device")' tests/test_*.py)

test: $(VENV)/.stamp-dev
	$(BIN)/finesteer-local models pull smollm2
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --device rpc $(ON_A_WORKER)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

contract: $(VENV)/.stamp-dev
	$(BIN)/lint-imports --no-logo

# A stale command page fails the tests; here it is written anew.
docs: $(VENV)/.stamp-docs
	$(BIN)/python tests/command_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find finesteer_local converters models tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# What a user has. The development tools hold it too, so whichever stamp is newer will do. Where pip's cache has a
# llama-cpp-python without RPC, only the tests need another.
$(VENV)/.stamp-run: $(RECIPE) | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.stamp-dev: $(RECIPE) $(CLIENT) | $(BIN)/python
	$(INSTALL) --upgrade 'pip>=25.1'  # the first that knows dependency groups
	$(INSTALL) --editable '.[train,serve]' --group dev
	# instructor asks for older releases of rich and jiter than ours, and works with these.
	$(INSTALL) --no-deps instructor
	! command -v npm > /dev/null || npm ci --prefix tests/ai_sdk --no-audit --no-fund || echo "without the AI SDK its tests are skipped"
	$(HAS_RPC) || $(INSTALL) --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-docs: $(VENV)/.stamp-dev
	$(INSTALL) --group docs
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
