# Everything is run from .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDER := .venv-sqlalchemy-2.0
BENCH_INSTALLED := $(VENV)/.bench-installed

.PHONY: demo test test-quick test-sqlalchemy-2.0 lint typecheck check bench bench-check bench-scale bench-purge chaos sql format clean

demo: $(INSTALLED)  ## replay an event log through the repository; LOG=path.csv names one, DATABASE_URL a server
	$(BIN)/python -m demo $(if $(LOG),--log '$(LOG)')

WORKERS ?= 2
test: $(INSTALLED)  ## the whole suite on embedded PostgreSQLs, or on TEST_DATABASE_URL; ARGS are pytest's
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-quick: $(INSTALLED)  ## the tests in tests/unit, which need no server: some seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/unit $(ARGS)

# What can differ by SQLAlchemy, which is not how isolated a transaction is, nor the server's version or its plans. The
# SQL of each statement is the same: tests/unit compares it with tests/sql.
test-sqlalchemy-2.0: $(OLDER)/.installed  ## on the newest SQLAlchemy 2.0; CONTRIBUTING.md tells what it leaves out
	TEST_PLACE="PostgreSQL 18, READ COMMITTED" $(OLDER)/bin/python -m pytest -n $(WORKERS) --dist worksteal \
		tests/unit tests/contract tests/faults/test_cancellation.py \
		$(addprefix tests/postgres/,bulk round_trips levels/bulk levels/test_transactions.py queries/test_streams.py) \
		$(addprefix tests/postgres/,test_columns.py test_log.py states/test_versions.py) \
		$(addprefix tests/postgres/schema/routes/,test_code.py test_check_schema.py) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(BENCH_INSTALLED)
	$(BIN)/mypy commandbus_process demo examples tests benchmarks alembic/env.py alembic/versions/*.py
	$(BIN)/basedpyright

check: lint typecheck test bench-check

bench: $(BENCH_INSTALLED)  ## measure against hand-written SQL, into benchmarks/results; ARGS="--help" tells the options
	$(BIN)/python -m benchmarks $(ARGS)

bench-check: $(BENCH_INSTALLED)  ## prove that all sides of the benchmark do the same work; no time is looked at
	$(BIN)/python -m benchmarks --check

bench-scale: $(BENCH_INSTALLED)  ## measure the queries with 10,000 and 1,000,000 processes, 7 minutes; ARGS="--help" tells the options
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-purge: $(BENCH_INSTALLED)  ## measure a purge beside a running load, 2 minutes; ARGS="--help" tells the options
	$(BIN)/python -m benchmarks.retention $(ARGS)

SECONDS ?= 120
chaos: $(INSTALLED)  ## kill the server under load for SECONDS, at least 20 times and 10,000 operations, then fail over to a standby; SEED repeats a run
	$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

sql: $(INSTALLED)  ## write tests/sql anew: what the library sends, for a reader
	WRITE_SQL=1 $(BIN)/python -m pytest -q tests/unit/test_statements.py tests/postgres/schema/routes/test_sql.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDER) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable .
	touch $@

# The same versions of everything else. SQLAlchemy is replaced at the end, because a constraint cannot be overridden.
$(OLDER)/.installed: pyproject.toml constraints.txt constraints-sqlalchemy-2.0.txt
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(OLDER)/bin/python -m pip install --quiet --constraint constraints.txt --group test
	$(OLDER)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable .
	$(OLDER)/bin/python -m pip install --quiet --requirement constraints-sqlalchemy-2.0.txt
	$(OLDER)/bin/python -m pip check
	touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	touch $@
