# Everything here needs Python 3.11 or later with venv and pip, and make. Servers are found or started by the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL ?= $(PIP) install
ARGS ?=
JOBS ?= 5
SIDE_BY_SIDE := --numprocesses $(JOBS) --dist loadgroup --no-loadscope-reorder

# Each process of the tests would compile all of them for itself.
unexport PYTHONDONTWRITEBYTECODE

# Temporary files of tests, SQLite databases among them, are in memory where Linux has space for that.
# pytest keeps those of failed tests.
ifeq ($(shell test -w /dev/shm && df --output=avail --block-size=1G /dev/shm | tail -n 1 | xargs test 4 -le && echo yes),yes)
export PYTEST_DEBUG_TEMPROOT ?= /dev/shm
endif

.DEFAULT_GOAL := help

.PHONY: help demo test quick soak cluster check bench kills pinned waiting format image clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.run  ## real purchases through four worker processes; ARGS="--kill"
	@$(BIN)/eventmesh demo $(ARGS)

test: $(VENV)/.dev  ## all tests, several processes side by side (JOBS=5); ARGS="-k redis"
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

quick: check  ## lint, types and unit tests, in about a minute
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit $(ARGS)

soak: export EVENTMESH_SOAK_MINUTES ?= 10
soak: $(VENV)/.dev  ## all crash points; connections cut after every few bytes; 100,000 inputs to the decoders; verdicts about large schemas; all seeds of simulations; all faults on all servers, again and again for EVENTMESH_SOAK_MINUTES
	$(BIN)/python -m pytest tests/crash tests/compat/test_large_schemas.py tests/testing tests/integration/test_*_cuts.py tests/integration/test_broker_cancellation.py tests/integration/test_broker_closes.py \
		tests/integration/test_mariadb.py tests/integration/test_servers.py tests/integration/test_amqp_order.py \
		tests/unit/persistence/test_state_machine.py tests/unit/test_decoders.py tests/conformance tests/faults tests/acceptance -m "soak or not soak" $(ARGS)

cluster: $(VENV)/.dev  ## nodes of clusters of RabbitMQ and Redis are killed under load; needs Docker
	$(BIN)/python -m benchmarks.rabbitmq_cluster $(ARGS)
	$(BIN)/python -m benchmarks.rabbitmq_cluster --ordered --workers 3 $(ARGS)
	$(BIN)/python -m benchmarks.redis_cluster --ordered --workers 3 $(ARGS)
	$(BIN)/python -m benchmarks.redis_cluster --ordered --workers 3 --slots 6 $(ARGS)

check: $(VENV)/.dev  ## what a reader's tools would say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry .

bench: $(VENV)/.dev  ## ratios against raw clients, FastStream, workflow engines, and programs written by hand
	$(BIN)/python -m benchmarks.transports $(ARGS)
	$(BIN)/python -m benchmarks.effects
	$(BIN)/python -m benchmarks.relays
	$(BIN)/python -m benchmarks.drain
	$(BIN)/python -m benchmarks.takeover
	$(BIN)/python -m benchmarks.sagas
	$(BIN)/python -m benchmarks.schemas
	$(BIN)/python -m benchmarks.tracing
	$(BIN)/python -m benchmarks.ordering
	$(BIN)/python -m benchmarks.ordering_workers
	$(BIN)/python -m benchmarks.ordering_costs

kills: $(VENV)/.dev  ## the demo on every broker, with and without workers that are killed
	$(BIN)/python -m benchmarks.demo_kills $(ARGS)

pinned: $(VENV)/.dev  ## the relay's rate while another transaction pins what may be cleared away
	$(BIN)/python -m benchmarks.pinned_snapshot $(ARGS)

waiting: $(VENV)/.dev  ## a worker's memory while a million messages wait
	$(BIN)/python -m benchmarks.waiting $(ARGS)

format: $(VENV)/.dev  ## the code's layout, and what the linter can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image: $(VENV)/.dev  ## wheels for the Dockerfile, where a build cannot reach a package index
	rm -rf build/wheels
	$(PIP) wheel --no-deps --wheel-dir build/wheels .
	$(PIP) download --dest build/wheels --only-binary=:all: --python-version $(or $(IMAGE_PYTHON),3.13) \
		--find-links build/wheels --constraint constraints.txt eventmesh

clean:  ## remove what was built, the environment too
	rm -rf $(VENV) build *.egg-info .eventmesh .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --constraint constraints.txt --editable '.[dashboard]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --constraint constraints.txt --editable '.[test,testing,bench,check,import,mariadb,otel,reload,uvloop]'
	@touch $@ $(VENV)/.run
