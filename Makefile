# On a machine with python3 (with venv) and make: `make demo` shows it, `make test` proves it.

PYTHON ?= python3
VENV ?= .venv
HOME_ASSISTANT := .venv-homeassistant
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
FAULT_ARGS ?=
TIMES ?= 20
# Many tests wait for processes, so more workers than cores; 0 runs them one after the other.
WORKERS ?= 6
# Bytecode is kept, whatever the environment says: the tests start hundreds of processes.
PYTEST = env -u PYTHONDONTWRITEBYTECODE PATH="$$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin" $(BIN)/python -m pytest
IN_WORKERS = -n $(WORKERS) --dist load --maxschedchunk 1

.PHONY: help demo test test-quick test-models test-node-red test-homeassistant pictures coverage test-faults lint format
.PHONY: figures bench constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/.demo  ## run the whole system on this machine, with a simulated cloud
	@$(BIN)/bace-bridge demo $(DEMO_ARGS)

test: $(VENV)/.test  ## run every test, with a real Mosquitto if possible
	@sh tests/get-mosquitto.sh
	@$(PYTEST) $(IN_WORKERS) $(TEST_ARGS)

test-quick: $(VENV)/.test  ## run the tests of the pure core and of the store, in less than a minute
	@$(PYTEST) $(IN_WORKERS) tests/unit tests/contract $(TEST_ARGS)

test-faults: $(VENV)/.test  ## run the fault suite at full size (15 minutes); FAULT_ARGS="--seed 123" repeats a run
	@sh tests/get-mosquitto.sh
	@$(PYTEST) tests/faults --full-faults -v -o faulthandler_timeout=0 $(FAULT_ARGS)

test-node-red: $(VENV)/.test $(VENV)/node-red/.ready  ## run the flows of the docs in a real Node-RED (needs npm)
	@sh tests/get-mosquitto.sh
	@$(PYTEST) tests/acceptance/test_recipes.py tests/acceptance/test_csv_recipes.py -k node_red -v $(TEST_ARGS)

test-models: $(VENV)/.test  ## run the Hypothesis tests with 20 times as many random examples; TIMES=100 for more
	@BACE_TEST_MODELS=$(TIMES) $(PYTEST) $(IN_WORKERS) -m hypothesis -o faulthandler_timeout=0 $(TEST_ARGS)

# One after the other: each test waits for what Home Assistant shows within seconds.
test-homeassistant: $(VENV)/.test $(HOME_ASSISTANT)/.installed  ## run the tests with a real Home Assistant (needs Python 3.13)
	@sh tests/get-mosquitto.sh
	@$(PYTEST) tests/homeassistant -v $(TEST_ARGS)

pictures: $(VENV)/.test $(HOME_ASSISTANT)/.installed  ## take the pictures of docs/home-assistant.md (needs Chromium)
	@PATH="$$PATH:/usr/sbin" $(BIN)/python -m tests.homeassistant.pictures

coverage: $(VENV)/.test  ## run every test and measure its coverage; PROCESSES=1 includes the real processes
	@$(MAKE) test TEST_ARGS="--cov --cov-report=term --cov-report=json:$(VENV)/coverage.json \
		$(if $(PROCESSES),--cov-config=tests/with-processes.coveragerc) $(TEST_ARGS)"

lint: $(VENV)/.lint  ## run ruff, mypy strict and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.lint  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(VENV)/.test  ## measure the code: modules, functions, comments, words
	@$(BIN)/python -m bench.house

bench: $(VENV)/.test  ## measure the figures of docs/performance.md
	@PATH="$$PATH:/usr/sbin" $(BIN)/python -m bench

constraints: $(VENV)/.test $(VENV)/.lint  ## lock the installed versions
	@{ echo "# The versions that make demo, make test and CI use. Written by: make constraints"; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel)=='; } > constraints.txt

clean:  ## everything that was made here
	rm -rf $(VENV) $(HOME_ASSISTANT) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

# A stamp a set of extras, so that a second call costs nothing.
# A virtual environment that could be made in part only would look finished to the next call.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bace-bridge needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1):" \
	    "name another one, such as: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "python3 lacks venv: install it (Debian: apt-get install python3-venv)"; exit 1; }

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing bace-bridge and its demo into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing bace-bridge and its tests into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/node-red/.ready: $(VENV)/bin/python
	@echo "Installing Node-RED into $(VENV)/node-red ..."
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/node-red node-red@4.1
	@touch $@

$(VENV)/.lint: $(VENV)/bin/python pyproject.toml constraints.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

# Where there is no Python for it, it is not made, and the tests are skipped.
$(HOME_ASSISTANT)/.installed: tests/homeassistant/requirements.txt
	@sh tests/homeassistant/set-up.sh $(HOME_ASSISTANT)
