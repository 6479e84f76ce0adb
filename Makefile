# Two commands matter: `make run` and `make test`. Both set up what is missing first.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin

# Written by scripts/setup when a set-up is complete; newer inputs make it run again.
RUN_STAMP := $(VENV)/.ready-run
DEV_STAMP := $(VENV)/.ready-dev
SETUP_INPUTS := scripts/setup pyproject.toml setup.py requirements.lock requirements-mount.lock \
	engine/data/md5lanes.c engine/data/md5lanes_kernel.h

CODE := cli dav engine fs s3 tests benchmarks

# What ruff's async rules leave out. ASYNC9xx (a checkpoint on every path) would cost a trip through
# the scheduler per call on the request path. Also left out: 109, kv.run takes an explicit deadline;
# 124, seams are async where one side waits; 114 and 128, guesses about what nursery.start is given.
# Not in a .flake8 file: flake8 takes codes of five letters on its command line only.
ASYNC_RULES := --isolated --select=ASYNC1,ASYNC2 --extend-ignore=ASYNC109,ASYNC114,ASYNC124,ASYNC128

# Suites that make test-fdb runs once more with every store's metadata on FoundationDB.
FDB_TESTS := tests/model/test_engine_model.py tests/model/test_engine_scripts.py \
	tests/model/test_s3_model.py tests/model/test_dav_model.py tests/model/test_three_doors.py

.PHONY: help run setup setup-dev test test-cluster sim check format bench bench-cluster bench-dav bench-mount soak lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(RUN_STAMP)  ## Serve ./data on six drive folders, 4+2; prints `ready ...`
	@exec $(BIN)/lode serve --data ./data --drives data/drive{1..6} --profile 4+2 --dav 127.0.0.1:9001 --metrics 127.0.0.1:9002 $(ARGS)

setup: $(RUN_STAMP)  ## Install what `make run` needs
	@:
setup-dev: $(DEV_STAMP)  ## Install what `make test` and `make check` need
	@:

$(RUN_STAMP): $(SETUP_INPUTS)
	@VENV=$(VENV) scripts/setup run

$(DEV_STAMP): $(SETUP_INPUTS) requirements-dev.lock
	@VENV=$(VENV) scripts/setup dev

test: $(DEV_STAMP)  ## Run the whole suite; ARGS go to pytest
	@$(BIN)/pytest $(ARGS)

test-cluster: $(DEV_STAMP)  ## Break a cluster of seven machines (network namespaces; as root)
	@$(BIN)/pytest -m cluster tests/cluster $(ARGS)

SECONDS_OF_SIM ?= 300
sim: $(DEV_STAMP)  ## Simulate lives of a cluster for minutes; SEED=123 runs one again, with its trace
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation $(if $(SEED),$(SEED),--seconds $(SECONDS_OF_SIM) $(ARGS))

check: $(DEV_STAMP)  ## Format, lint, types and layering, without changing anything
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/flake8 $(ASYNC_RULES) $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_layering.py

format: $(DEV_STAMP)  ## Format the code and fix what can be fixed
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: $(DEV_STAMP)  ## Measure against a bare server and nginx; prints a table, writes JSON
	@$(BIN)/python -m benchmarks $(ARGS)

bench-mount: $(DEV_STAMP)  ## Measure the mount against rclone, s3fs and a file system that does nothing
	@$(BIN)/python -m benchmarks.mount $(ARGS)

bench-cluster: $(DEV_STAMP)  ## Measure a cluster: sockets, lost and slow members, repair, growth
	@$(BIN)/python -m benchmarks.cluster $(ARGS)

bench-dav: $(DEV_STAMP)  ## Measure WebDAV beside wsgidav's provider, Apache and rclone
	@$(BIN)/python -m benchmarks.dav $(ARGS)

soak: $(DEV_STAMP)  ## Run the long tests that `make test` leaves out
	@$(BIN)/pytest -m soak $(ARGS)

# The contract and what FoundationDB adds to it; then the models, whose stores are told to lie there.
test-fdb: $(DEV_STAMP)  ## Run the tests of metadata on FoundationDB; fails without a server
	@[[ -n "$$LODE_TEST_FDB_CLUSTER" ]] || command -v fdbserver >/dev/null || { echo \
	    "test-fdb: name a cluster file in LODE_TEST_FDB_CLUSTER, or put fdbserver on the PATH" >&2; \
	    exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --require-hashes -r requirements-fdb.lock >&2
	@$(BIN)/pytest -k fdb $(ARGS)
	@LODE_TEST_META=fdb $(BIN)/pytest $(FDB_TESTS) $(ARGS)

# UV_CUSTOM_COMPILE_COMMAND is what the files say about their origin.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-annotate --extra build $(UPGRADE) pyproject.toml

lock: $(DEV_STAMP)  ## Lock the dependencies again; UPGRADE=--upgrade takes newer ones
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --extra mount --constraint requirements.lock --output-file requirements-mount.lock
	$(COMPILE) --extra fdb --constraint requirements.lock --output-file requirements-fdb.lock

clean:  ## Remove the virtual environment and caches; never ./data
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './data/*' -prune -exec rm -rf {} +
