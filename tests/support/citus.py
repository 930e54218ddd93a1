"""Citus: with `TEST_CITUS=1` the tests run on distributed tables, on the server that `TEST_DATABASE_URL` names.

The server must have Citus in `shared_preload_libraries` and be a node by itself: each test's database is a copy of a
template, and a copy has its shards only if they are in the same database. The rules are those of a cluster: what needs
one shard, and what Citus refuses for several.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

DISTRIBUTED = os.environ.get("TEST_CITUS") == "1"

_PROCESS, _AUDIT = "commandbus.process", "commandbus.process_audit"
DISTRIBUTE = (
    "CREATE EXTENSION citus",
    f"SELECT create_distributed_table('{_PROCESS}', 'process_id')",
    f"SELECT create_distributed_table('{_AUDIT}', 'process_id', colocate_with => '{_PROCESS}')",
)

_CLAIM = "`claim` by lock: Citus takes no locks across shards"
_COPY = "Citus raises its own InternalError for a COPY of what is there already"
_PURGE = "`purge` locks across shards"
CANNOT_HOLD: Mapping[str, str] = {
    r"levels/test_locks\.py::test_(claims|what_a_claim|steps_can_be_logged_while_a|ten_workers|what_cannot)": _CLAIM,
    r"levels/test_lock_order\.py::test_a_reply_delivered_twice": _CLAIM,
    r"queries/test_pages\.py::test_claim_by_deadline": _CLAIM,
    r"levels/test_claim_by_version\.py::test_it_looks_for_what_a_claim_by_lock": _CLAIM,
    r"states/test_unreadable\.py::.*claim": _CLAIM,
    r"test_(connection_states|lost_races|listeners|columns)\.py::.*claim": _CLAIM,
    r"tests/(contract|postgres/levels|postgres)/bulk/": _COPY,
    r"retention/test_(purge|at_once)\.py": _PURGE,
    r"queries/test_streams\.py::.*consistent": "a subquery in LIMIT is refused across shards",
    r"queries/test_pages\.py::.*steps": "a subquery for each row of a page is refused across shards",
    r"schema/test_guards\.py": "triggers are refused on distributed tables",
    r"tests/postgres/schema/": "the migrations and their locks are promised for plain tables",
    r"tests/postgres/test_plans\.py": "a plan on the coordinator is not that of a shard",
    r"tests/docs/test_pages\.py::test_a_page_prints": "pages use `claim` and `purge`",
}
"""Which tests cannot hold on distributed tables, as patterns of their ids, and why. The first that fits counts."""


def why_it_cannot_hold(test: str) -> str | None:
    """Return why the test with this id cannot hold on distributed tables; `None` if it can."""
    return next((why for pattern, why in CANNOT_HOLD.items() if re.search(pattern, test)), None)


def grants_on_shards(statements: Iterable[str]) -> Iterator[str]:
    """Return the statements that repeat GRANTs on each shard, for whole tables.

    Citus passes on rights to a table and not those to columns. They are still checked: by the coordinator. A shard is
    sent all columns of a row, also those that the database sets, so its rights cannot be those to columns.
    """
    for statement in statements:
        for table in (_PROCESS, _AUDIT):
            if f" ON {table} TO " in statement:
                on_a_shard = re.sub(r" \([^)]*\)", "", statement).replace(f" ON {table} TO ", " ON %s TO ")
                on_a_shard = on_a_shard.replace("'", "''")
                yield f"SELECT run_command_on_shards('{table}', '{on_a_shard}')"


def distribute(grants: Iterable[str], execute: Callable[[str], object]) -> None:
    """Distribute the tables of a migrated database whose roles have their rights.

    Args:
        grants: The GRANTs that were run.
        execute: Runs a statement in the database, as a superuser, by itself.
    """
    for statement in (*DISTRIBUTE, *grants_on_shards(grants)):
        execute(statement)


def leave_alone(database: str, execute: Callable[[str], object]) -> None:
    """Keep everybody out of a database, so that it can be copied. Citus has a process of its own in each database.

    Args:
        database: Its name.
        execute: Runs a statement in another database, as a superuser, by itself.
    """
    execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'")
