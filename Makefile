# make train   creates the environment and trains a spatial transformer on MNIST
# make test    creates the environment and runs the tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test test-all regress test-slurm test-wandb lint types check docs tables report demo benchmark notebooks clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; name another Python 3.10 to 3.13: make PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A mark is set when all packages are in; a change of the pins makes the environment again.
$(VENV)/run.done: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/docs.done: requirements-docs.txt $(VENV)/run.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

$(VENV)/dev.done: requirements-dev.txt $(VENV)/run.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

train: $(VENV)/run.done ## train a spatial transformer on distorted MNIST, a few minutes
	$(BIN)/python train.py experiment=quickstart $(ARGS)

test: $(VENV)/dev.done ## run the fast tests, minutes
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/dev.done ## run the fast and the slow tests
	$(BIN)/python -m pytest -m "not slurm and not wandb_server" $(ARGS)

regress: $(VENV)/run.done ## compare the errors of eight short runs with results/regress, minutes
	$(BIN)/python scripts/dev/regress.py $(ARGS)

test-slurm: $(VENV)/dev.done ## set up SLURM and run the tests that need it (as root, on Debian)
	scripts/dev/slurm.sh start
	$(BIN)/python -m pytest tests/hydra_plugins -m slurm -n 0 $(ARGS)

# The licence of openwandb is non-commercial: it serves this test and nothing else.
.venv-openwandb/bin/openwandb:
	$(PYTHON) -m venv .venv-openwandb
	.venv-openwandb/bin/python -m pip install --quiet --disable-pip-version-check openwandb==0.5.25

test-wandb: $(VENV)/dev.done .venv-openwandb/bin/openwandb ## run the online tests against a local server with W&B's protocol
	OPENWANDB=$(CURDIR)/.venv-openwandb/bin/openwandb $(BIN)/python -m pytest tests/loggers -m wandb_server -n 0 $(ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.done
	$(BIN)/mypy

check: lint types test ## run lint, type checks and tests

docs: $(VENV)/docs.done ## build the documentation site, docs/_build/html/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

tables: $(VENV)/run.done ## regenerate the tables and charts of the documents from results/
	$(BIN)/python scripts/make_tables.py

report: $(VENV)/run.done ## write one page with all results and images, report/index.html
	$(BIN)/python scripts/report.py $(ARGS)

demo: $(VENV)/run.done ## write a page to try three networks in a browser, demo/index.html
	$(BIN)/python scripts/make_demo.py $(ARGS)

benchmark: $(VENV)/dev.done ## measure the speed of this and other implementations, eleven minutes
	$(BIN)/python scripts/dev/benchmark.py $(ARGS)
	$(BIN)/python scripts/make_tables.py

notebooks: $(VENV)/dev.done ## execute the notebooks and write them with their outputs, minutes
	$(BIN)/python scripts/dev/run_notebooks.py $(ARGS)

clean: ## remove the environment
	rm -rf $(VENV)
