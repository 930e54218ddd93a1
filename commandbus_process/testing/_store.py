"""The rows that an in-memory repository keeps: what the two tables are for the one on PostgreSQL."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

from commandbus_process._checked_rows import Row
from commandbus_process._columns import ENTRY, JSON, REPLY, SAME_COMMAND, SAME_PROCESS, SAME_REPLY, TIMES, UPDATED
from commandbus_process._stamps import Written
from commandbus_process.tables import FIRST_VERSION
from commandbus_process.testing._jsonb import as_jsonb, equal_as_jsonb

Key = tuple[str, UUID]


class InMemoryStore:
    """The processes and steps of one or several in-memory repositories. It is to them what a database is to real ones.

    Give the same store to two repositories with different state types, to test that one reads what the other has saved.
    It belongs to one event loop, and is gone when nobody refers to it any more.
    """

    def __init__(self) -> None:
        self._processes: dict[Key, Row] = {}
        self._steps: dict[Key, dict[UUID, Row]] = {}
        self._writes = count(1)

    def processes(self) -> list[Row]:
        """Return the rows of all processes. Do not change them."""
        return list(self._processes.values())

    def process(self, key: Key) -> Row | None:
        """Return the row of a process."""
        return self._processes.get(key)

    def steps(self, key: Key) -> list[Row]:
        """Return the steps of a process, in the order of logging."""
        return list(self._steps.get(key, {}).values())

    def step(self, key: Key, command_id: UUID) -> Row | None:
        """Return one step of a process."""
        return self._steps.get(key, {}).get(command_id)

    def new_row(self, values: Mapping[str, Any]) -> Row:
        """Return the row of a new process, which `insert_process` takes."""
        row = {**_as_stored(values), "version": FIRST_VERSION}
        self._stamp(row)
        return row

    def insert_process(self, row: Row) -> Written:
        """Insert a process, whose key must be free."""
        key = row["domain"], row["process_id"]
        self._processes[key] = row
        self._steps[key] = {}
        return written(row)

    def update_process(self, key: Key, values: Mapping[str, Any]) -> Written:
        """Update a process, which must exist."""
        self._processes[key] |= _as_stored({name: values[name] for name in UPDATED})
        return self.touch_process(key)

    def touch_process(self, key: Key) -> Written:
        """Raise the version of a process, which must exist, and set `updated_at`."""
        row = self._processes[key]
        row |= {"updated_at": datetime.now(UTC), "version": row["version"] + 1}
        return self._stamp(row)

    def insert_step(self, key: Key, values: Mapping[str, Any]) -> None:
        """Log a step under a command id that must be free, of a process that must exist."""
        self._steps[key][values["command_id"]] = _as_stored({name: values[name] for name in ENTRY})

    def record_reply(self, key: Key, command_id: UUID, values: Mapping[str, Any]) -> None:
        """Record the reply to a step, which must exist."""
        self._steps[key][command_id] |= _as_stored({name: values[name] for name in REPLY})

    def _stamp(self, row: Row) -> Written:
        # Like the stamp of a row in PostgreSQL, it begins with the version, and no two writes have the same.
        row["stamp"] = f"{row['version']} {next(self._writes)}"
        return written(row)


def written(row: Row) -> Written:
    """Return what the store has set in the row of a process."""
    return Written(row["version"], row["updated_at"], row["stamp"])


def _as_stored(values: Mapping[str, Any]) -> Row:
    return {name: as_jsonb(value) if name in JSON and value is not None else value for name, value in values.items()}


def _same(row: Mapping[str, Any], given: Mapping[str, Any], names: Iterable[str]) -> bool:
    return all(equal_as_jsonb(row[name], given[name]) if name in JSON else row[name] == given[name] for name in names)


def is_same_process(row: Row, given: Mapping[str, Any]) -> bool:
    """Whether a row has what an update would write. Of times, only whether there is one is compared."""
    times = (name for name in UPDATED if name in TIMES)
    return _same(row, given, SAME_PROCESS) and all((row[name] is None) is (given[name] is None) for name in times)


def found_for_entry(store: InMemoryStore, key: Key, given: Mapping[str, Any]) -> Row | None:
    """Return what is stored in place of an entry, as `why_not_logged` takes it."""
    if store.process(key) is None:
        return None
    row = store.step(key, given["command_id"])
    if row is None:
        return {"command_id": None, "same": False}
    same = _same(row, given, SAME_COMMAND) and (given["reply_outcome"] is None or _same(row, given, SAME_REPLY))
    return {**row, "same": same}


def found_for_reply(store: InMemoryStore, key: Key, command_id: UUID, given: Mapping[str, Any]) -> Row | None:
    """Return the step that a reply is about, as `why_not_recorded` takes it."""
    row = store.step(key, command_id)
    return None if row is None else {**row, "same": _same(row, given, SAME_REPLY)}
