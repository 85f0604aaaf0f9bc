# The front door. It needs make and Python 3.10 or newer; everything else goes into .venv.

PYTHON ?= python3
ARGS ?=
# How many processes run tests at once, each with brokers of its own. A file's tests stay in one of them, in their order.
WORKERS ?= 2
PYTEST_ADDOPTS ?= --numprocesses $(WORKERS) --dist loadfile
export PYTEST_ADDOPTS
KAFKA_TESTS = $(wildcard tests/integration/test_kafka_python_*.py)
RABBITMQ_TESTS = $(wildcard tests/integration/test_aio_pika_*.py tests/patterns/test_*_aio_pika.py)

# An environment is made anew if PYTHON is named and another than the one that it was made by.
version = $(shell $(1) -c 'import sys; print(sys.version.replace(" ", ""))' 2>/dev/null)
is_made_by_python = $(filter $(call version,$(1)/bin/python),$(call version,$(PYTHON)))
another_python = $(if $(filter-out file,$(origin PYTHON)),$(if $(is_made_by_python),,another-python))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: .venv/ready ## Send three orders through Kafka, RabbitMQ and NATS, show their traces, write docs/demo.svg
	.venv/bin/python -m examples.demo --svg docs/demo.svg

.PHONY: test
test: .venv/ready rabbitmq ## Run the tests on real brokers (some of them only: make test ARGS="-k kafka")
	.venv/bin/python -m pytest $(ARGS)

.PHONY: test-oldest
test-oldest: .venv-oldest/ready rabbitmq-oldest ## Run the tests with the oldest supported clients
	.venv-oldest/bin/python -m pytest $(ARGS)

.PHONY: test-matrix
test-matrix: .venv/ready rabbitmq ## Run the tests with old and new clients on every Python (see docs/versions.md)
	PATH="$$PATH:$$(.ci/unstable python)" .venv/bin/nox $(ARGS)

.PHONY: test-kafka
test-kafka: .venv/ready ## Run the tests of Kafka on Apache Kafka (needs Java and Maven)
	OTEL_MESSAGING_TEST_KAFKA=apache .venv/bin/python -m pytest $(KAFKA_TESTS) $(ARGS)

.PHONY: test-kafka-oldest
test-kafka-oldest: .venv-oldest/ready ## The same with the oldest client, on an Apache Kafka that still speaks with it
	OTEL_MESSAGING_TEST_KAFKA=apache .venv-oldest/bin/python -m pytest $(KAFKA_TESTS) $(ARGS)

.PHONY: test-rabbitmq
test-rabbitmq: .venv/ready ## Run the tests of RabbitMQ on RabbitMQ 4 (needs root, on Debian or Ubuntu)
	command=$$(.ci/unstable rabbitmq)/rabbitmq-server && \
	RABBITMQ_COMMAND="$$command" .venv/bin/python -m pytest $(RABBITMQ_TESTS) $(ARGS)

.PHONY: pythons
pythons: ## Fetch Python 3.14 and 3.15, for make test PYTHON=... (needs root, on Debian or Ubuntu)
	@folder=$$(.ci/unstable python) && ls -d "$$folder"/*

.PHONY: kafka
kafka: .venv/ready ## Start Apache Kafka, print its address, wait for Ctrl-C (needs Java and Maven)
	.venv/bin/python -m examples.brokers --apache-kafka

.PHONY: lint
lint: .venv/ready ## Check style, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy --strict src

.PHONY: bench
bench: .venv/ready rabbitmq ## Measure what the package adds to each call, on real brokers
	.venv/bin/python -m benchmarks $(ARGS)

.PHONY: bench-startup
bench-startup: .venv/ready ## Measure what the package adds to the start of a program
	.venv/bin/python -m benchmarks.startup

.PHONY: bench-quick
bench-quick: .venv/ready ## Count the instructions of recorded spans only (a minute)
	.venv/bin/python -m benchmarks --quick $(ARGS)

.PHONY: soak
soak: .venv/ready rabbitmq ## Send and consume for minutes, and watch what stays: ARGS="kafka_python", "aio_pika" or "nats_py"
	.venv/bin/python -m benchmarks.soak $(ARGS)

.PHONY: brokers
brokers: .venv/ready rabbitmq ## Start the three brokers, print their addresses, wait for Ctrl-C
	.venv/bin/python -m examples.brokers

.PHONY: clean
clean: ## Remove the environments and everything that the tools have left
	rm -rf .venv .venv-oldest .nox .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Kafka and NATS come with the environment. RabbitMQ is installed where that is possible; otherwise
# this says what to do, and the tests that need it say so again.
.PHONY: rabbitmq
rabbitmq: .venv/ready
	@.venv/bin/python -m examples.brokers --install

.PHONY: rabbitmq-oldest
rabbitmq-oldest: .venv-oldest/ready
	@.venv-oldest/bin/python -m examples.brokers --install

.venv/ready: pyproject.toml $(call another_python,.venv)
	$(call environment,.venv,dev)

.venv-oldest/ready: pyproject.toml $(call another_python,.venv-oldest)
	$(call environment,.venv-oldest,oldest)

.PHONY: another-python
another-python:

# $(1): the folder; $(2): the dependency group of pyproject.toml
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo "'$(PYTHON)' is not Python 3.10 or newer. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "'$(PYTHON)' has no venv. On Debian and Ubuntu run: apt-get install python3-venv (as root)" >&2; exit 1; }
@echo "Making $(1) (a minute at the first time)"
@$(PYTHON) -m venv --clear $(1)
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check uv
@$(1)/bin/uv pip install --quiet --python $(1)/bin/python --editable . --group $(2)
@touch $@
endef
