# Every target does its own set-up on a fresh Debian 12 with git, make and python3. `make help` lists them.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# Debian's python3: optimised, and what installations use. Bytecode is kept, whatever the caller's shell says.
PYTHON := /usr/bin/python3
unexport PYTHONDONTWRITEBYTECODE
export PYTHONUNBUFFERED := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
CACHE := /var/cache/calico-libnetwork
export CALICO_LAB_CACHE := $(CACHE)

RUN_PACKAGES := iproute2 iptables nftables
DEMO_PACKAGES := busybox-static iputils-ping
TEST_PACKAGES := bird2 busybox-static etcd-client etcd-server iputils-ping libdevmapper1.02.1 libseccomp2 netcat-openbsd
BENCH_PACKAGES := iperf3
BENCH := lifecycle ipam policy dataplane hosts

# What is quick comes first, real daemons last
TEST_FOLDERS := $(patsubst %/__init__.py,%,$(wildcard tests/*/__init__.py))
SYSTEM_TESTS := $(filter-out tests/unit tests/e2e,$(TEST_FOLDERS))

.PHONY: help venv run demo check test test-unit test-system test-e2e bench etcd-stubs build clean root run-packages test-packages

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/.ready  ## the virtual environment, exactly as requirements.lock has it

run: root venv run-packages  ## start the plugin in the foreground (root); a dockerd too if none answers
	@$(PYTHON) -m scripts.run

demo: root venv run-packages  ## show all of it on this machine's Docker, and leave nothing behind (root)
	@scripts/install_packages.sh $(DEMO_PACKAGES)
	@$(PYTHON) -m scripts.demo

check: venv  ## formatting, lint, types, import direction
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_architecture.py

test: root venv test-packages  ## all tests: unit, datastore contract, kernel, real Docker daemons (root)
	$(BIN)/pytest tests/unit $(SYSTEM_TESTS) tests/e2e

test-unit: venv  ## tests that need neither root nor network
	$(BIN)/pytest tests/unit

test-system: root venv test-packages  ## datastores and the kernel, in network namespaces (root)
	$(BIN)/pytest $(SYSTEM_TESTS)

test-e2e: root venv test-packages  ## real Docker 20.10, 26.1 and 28.5 daemons (root); ARGS is handed to pytest
	$(BIN)/pytest tests/e2e $(ARGS)

bench: root venv test-packages  ## five benchmarks, or BENCH=policy alone; ARGS is handed to each (root)
	@scripts/install_packages.sh $(BENCH_PACKAGES)
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS); done

etcd-stubs: venv  ## generate etcd's messages from src/calico_libnetwork/datastore/etcd.proto
	cd src && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. calico_libnetwork/datastore/etcd.proto

build: venv  ## wheel and source distribution in dist/
	$(BIN)/hatchling build -d dist

clean:  ## remove everything that run, demo and test made, downloads included
	@if [ "$$(id -u)" -eq 0 ]; then $(PYTHON) -m scripts.clean; rm -rf $(CACHE); fi
	rm -rf .venv .state dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

root:
	@[ "$$(id -u)" -eq 0 ] || { echo "This needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

run-packages:
	@scripts/install_packages.sh $(RUN_PACKAGES)

test-packages: run-packages
	@scripts/install_packages.sh $(TEST_PACKAGES)
	@$(PYTHON) scripts/fetch_dockers.py $(CACHE)
	@$(PYTHON) -m scripts.fetch_bird3 $(CACHE)

.venv/.ready: requirements.lock pyproject.toml
	@scripts/install_packages.sh python3-venv
	@[ -x $(BIN)/pip ] || { echo "Creating .venv"; rm -rf .venv; $(PYTHON) -m venv .venv; }
	@echo "Installing what requirements.lock names"
	@$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q .venv/lib src
	@touch $@
