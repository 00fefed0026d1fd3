# make demo   the default study, from nothing to results/report/index.html
# make test   the tests, from nothing
# make watch  where a running study is: jobs, steps, epsilon so far, losses, time left
# The first two make the environment (.venv) first, and resume where they stopped.

PYTHON ?= python3
CORES ?= $(shell nproc)
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)
LIBRARY := workflow/scripts

.PHONY: demo test watch env check format config lock

demo: env
	@start=$$(date +%s); $(SNAKEMAKE) --quiet rules && \
	echo "Study done in $$(( ($$(date +%s) - start + 30) / 60 )) min. Report: results/report/index.html"

test: check
	$(BIN)/pytest

watch: env
	@$(BIN)/python workflow/scripts/watch_study.py

env: .venv/ready

# The stamp is written last: an interrupted installation is taken up again.
.venv/ready: requirements.in requirements-dev.in constraints.txt
	@start=$$(date +%s); \
	$(PYTHON) -c 'import sys; sys.exit("Veil needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)' && \
	$(PYTHON) -m venv .venv && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.in -r requirements-dev.in -c constraints.txt && \
	touch $@ && echo "Environment ready in $$(( $$(date +%s) - start )) s."

# Format, lint and types; seconds.
check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile workflow/rules

# Schema, default configuration and its reference, from the models.
config: env
	PYTHONPATH=$(LIBRARY) $(BIN)/python -m veil.config_docs

lock:
	uv pip compile requirements.in requirements-dev.in --python-version 3.11 --no-header --no-annotate -o constraints.txt
