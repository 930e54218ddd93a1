"""A process repository that keeps everything in memory, for unit tests."""

import asyncio
from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, cast, overload
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from commandbus_process import _log
from commandbus_process._arguments import (
    LIMIT,
    NAME,
    as_entries,
    changed_columns,
    check_key,
    check_loggable,
    check_process,
    check_uuid,
    check_uuids,
    checked,
    checked_filter,
    entry_columns,
    new_process_columns,
    only_known_types,
    reply_columns,
    sorted_statuses,
    unreadable_handler,
)
from commandbus_process._checked_rows import Row, read_entry, read_process
from commandbus_process._parameters import object_key, sent_rows
from commandbus_process._refusals import (
    is_redelivery,
    raise_first,
    why_not_logged,
    why_not_recorded,
    why_not_taken,
    why_not_updated,
)
from commandbus_process._stamps import forget_row, matching_stamps, set_stored, set_unlike_its_row
from commandbus_process._states import States
from commandbus_process.errors import InvalidInputError, ProcessAlreadyExistsError, StoredDataError
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import (
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StateT,
    StepReply,
)
from commandbus_process.repository import OnUnreadable, ProcessRepository
from commandbus_process.testing._bulk import log_many, save_many
from commandbus_process.testing._store import InMemoryStore, found_for_entry, found_for_reply, is_same_process, written

NO_CONNECTION = cast("AsyncConnection", object())
"""What a test passes as `conn` to an in-memory repository with `ignore_conn=True`. It can do nothing."""


class InMemoryProcessRepository(ProcessRepository[StateT]):
    """A process repository in memory. It keeps the promises of `ProcessRepository`, except those about connections.

    Each call is atomic. States and payloads go through the same JSON text as on PostgreSQL, so what you get back is
    never the object that you gave. Each call lets other tasks run once before it begins, as one on a server does.

    It cannot roll back, or wait for a lock: test that on PostgreSQL.

    Args:
        state_type: The type of the states, as `PostgresProcessRepository` takes it.
        ignore_conn: Accept a `conn`, and ignore it. Then each call takes effect at once, even if your transaction is
            rolled back, and no lock is taken: `claim` returns the same processes to two callers. By default a `conn` is
            refused, and with it `claim` and `for_update`, which need one.
        store: Where the rows are kept. Give the same to several repositories that share their data. Default: a new one.
    """

    @overload
    def __init__(
        self: "InMemoryProcessRepository[JsonObject]", *, ignore_conn: bool = False, store: InMemoryStore | None = None
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        state_type: type[StateT] | Mapping[str, type[StateT]],
        ignore_conn: bool = False,
        store: InMemoryStore | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self, *, state_type: object, ignore_conn: bool = False, store: InMemoryStore | None = None
    ) -> None: ...
    def __init__(
        self, *, state_type: object = None, ignore_conn: bool = False, store: InMemoryStore | None = None
    ) -> None:
        self._states: States[StateT] = States(state_type)
        self._ignores_conn = ignore_conn
        self._store = InMemoryStore() if store is None else store

    async def _begin(self, conn: AsyncConnection | None) -> None:
        """Refuse a connection, unless it is to be ignored, and let other tasks run."""
        if conn is not None and not self._ignores_conn:
            raise InvalidInputError(
                "conn",
                "cannot be used: a repository in memory cannot take part in a transaction; make it with "
                "ignore_conn=True if the test does not need a rollback or a lock, or test on PostgreSQL",
            )
        await asyncio.sleep(0)

    @override
    async def save(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        check_process(process)
        key, entries = (process.domain, process.process_id), as_entries(sent)
        values = {**new_process_columns(process), **self._states.columns(process)}
        rows = sent_rows(entries)
        await self._begin(conn)
        if self._store.process(key) is not None:
            raise ProcessAlreadyExistsError(*key)
        forget_row(process)
        set_stored(process, self._store.insert_process(self._store.new_row(values)), is_committed=True)
        for row in rows:
            self._store.insert_step(key, row)

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        check_process(process)
        key, values, stamps = (process.domain, process.process_id), self._changes(process), matching_stamps(process)
        await self._begin(conn)
        raise_first([why_not_updated(values, stamps, self._store.process(key))])
        set_stored(process, self._store.update_process(key, values), is_committed=True)

    def _changes(self, process: ProcessMetadata[StateT]) -> dict[str, Any]:
        values = {**changed_columns(process), **object_key(process), **self._states.columns(process)}
        return {**values, "key_state_version": self._states.newest_replaced(process)}

    @override
    async def get_by_id(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        for_update: Literal[False, True, "nowait", "skip_locked"] = False,
    ) -> ProcessMetadata[StateT] | None:
        check_key(domain, process_id)
        if for_update not in {False, True, "nowait", "skip_locked"}:
            raise InvalidInputError("for_update", 'must be False, True, "nowait" or "skip_locked"')
        if for_update and conn is None:
            raise InvalidInputError("for_update", "needs conn: without it, the lock would end with the statement")
        await self._begin(conn)
        row = self._store.process((domain, process_id))
        return None if row is None else read_process(self._states, row)

    @override
    async def get_by_ids(
        self,
        domain: str,
        process_ids: Iterable[UUID],
        conn: AsyncConnection | None = None,
        *,
        on_unreadable: OnUnreadable = "raise",
    ) -> dict[UUID, ProcessMetadata[StateT]]:
        unreadable_handler(on_unreadable)
        ids = check_uuids("process_ids", process_ids)
        checked(NAME, "domain", domain)
        await self._begin(conn)
        rows = (self._store.process((domain, process_id)) for process_id in ids)
        processes = self._read([row for row in rows if row is not None], None, on_unreadable)
        return {process.process_id: process for process in processes}

    @override
    async def find_by_status(
        self,
        domain: str,
        statuses: Collection[ProcessStatus],
        conn: AsyncConnection | None = None,
        *,
        process_type: str | None = None,
        limit: int | None = None,
        on_unreadable: OnUnreadable = "raise",
    ) -> list[ProcessMetadata[StateT]]:
        wanted = ProcessFilter(domain=domain, statuses=sorted_statuses(statuses), process_type=process_type)
        return await self._find(wanted, limit, conn, on_unreadable)

    @override
    async def claim(
        self,
        domain: str,
        statuses: Collection[ProcessStatus],
        conn: AsyncConnection,
        *,
        limit: int,
        process_type: str | None = None,
        current_step: str | None = None,
        business_key: str | None = None,
        updated_before: datetime | None = None,
        deadline_before: datetime | None = None,
        on_unreadable: OnUnreadable = "raise",
        by: Literal["lock", "version"] = "lock",
    ) -> list[ProcessMetadata[StateT]]:
        if conn is None:  # pyright: ignore[reportUnnecessaryComparison] - callers may be untyped
            raise InvalidInputError("conn", "is needed: without it, the locks would end with the statement")
        wanted = ProcessFilter(
            domain=domain,
            statuses=sorted_statuses(statuses),
            process_type=process_type,
            current_step=current_step,
            business_key=business_key,
            updated_before=updated_before,
            deadline_before=deadline_before,
        )
        if by not in {"lock", "version"}:
            raise InvalidInputError("by", 'must be "lock" or "version"')
        found = await self._find(wanted, checked(LIMIT, "limit", limit), conn, on_unreadable)
        if by == "version":
            for each in found:
                set_stored(each, self._store.touch_process((each.domain, each.process_id)), is_committed=True)
        return found

    async def _find(
        self, wanted: ProcessFilter, limit: int | None, conn: AsyncConnection | None, on_unreadable: OnUnreadable
    ) -> list[ProcessMetadata[StateT]]:
        checked_limit = None if limit is None else checked(LIMIT, "limit", limit)
        given = checked_filter(wanted)
        known = only_known_types(given.get("process_type"), self._states.process_types)
        unreadable_handler(on_unreadable)
        await self._begin(conn)
        by = "deadline" if "deadline_before" in given else "created_at"
        rows = [
            row
            for row in self._store.processes()
            if _matches(row, given) and (known is None or row["process_type"] in known)
        ]
        rows.sort(key=lambda row: (row[by], row["process_id"]))
        return self._read(rows, checked_limit, on_unreadable)

    def _read(
        self, rows: Iterable[Row], limit: int | None, on_unreadable: OnUnreadable
    ) -> list[ProcessMetadata[StateT]]:
        """Read rows until there are enough. Those that cannot be read do not count."""
        unreadable = unreadable_handler(on_unreadable)
        found: list[ProcessMetadata[StateT]] = []
        for row in rows:
            if len(found) == limit:
                break
            try:
                found.append(read_process(self._states, row))
            except StoredDataError as error:
                unreadable(error)
        return found

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> bool:
        check_loggable(entry)
        key, values = (domain, process_id), entry_columns(entry)
        check_key(*key)
        check_uuid("command_id", entry.command_id)
        await self._begin(conn)
        logged = found_for_entry(self._store, key, values)
        if is_redelivery([logged]):
            _log.redelivered("log_step", *key, entry.command_id)
            return False
        raise_first([why_not_logged(*key, logged, entry)])
        self._store.insert_step(key, values)
        return True

    @override
    async def update_step_reply(
        self,
        domain: str,
        process_id: UUID,
        command_id: UUID,
        entry: ProcessAuditEntry | StepReply,
        conn: AsyncConnection | None = None,
    ) -> bool:
        key, values = (domain, process_id), reply_columns("entry", entry)
        check_key(*key)
        check_uuid("command_id", command_id)
        if command_id != entry.command_id:
            raise InvalidInputError("command_id", "is not the reply's command_id")
        await self._begin(conn)
        recorded = found_for_reply(self._store, key, command_id, values)
        if is_redelivery([recorded]):
            _log.redelivered("update_step_reply", *key, command_id)
            return False
        raise_first([why_not_recorded(*key, recorded, entry)])
        self._store.record_reply(key, command_id, values)
        return True

    async def _steps(self, domain: str, process_id: UUID, conn: AsyncConnection | None) -> list[ProcessAuditEntry]:
        """Return all entries of a process in the order of logging."""
        check_key(domain, process_id)
        await self._begin(conn)
        return [read_entry(domain, process_id, row) for row in self._store.steps((domain, process_id))]

    @override
    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        return sorted(await self._steps(domain, process_id, conn), key=lambda entry: entry.sent_at)

    @override
    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        steps = await self._steps(domain, process_id, conn)
        return [entry.step_name for entry in steps if entry.reply_outcome is ReplyOutcome.SUCCESS]

    @override
    async def get_steps_to_compensate(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        include_unknown: bool = False,
    ) -> list[ProcessAuditEntry]:
        steps = await self._steps(domain, process_id, conn)
        undone = {entry.compensates for entry in steps if entry.reply_outcome is ReplyOutcome.SUCCESS}
        wanted = {ReplyOutcome.SUCCESS, None} if include_unknown else {ReplyOutcome.SUCCESS}
        return [
            entry
            for entry in reversed(steps)
            if entry.reply_outcome in wanted and entry.compensates is None and entry.command_id not in undone
        ]

    @override
    async def advance(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        reply: ProcessAuditEntry | StepReply | None = None,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> bool:
        check_process(process)
        if process.version is None:
            raise InvalidInputError("process.version", "is None: read or save the process before you advance it")
        key, entries = (process.domain, process.process_id), as_entries(sent)
        values, stamps, rows = self._changes(process), matching_stamps(process), sent_rows(entries)
        replied = None if reply is None else reply_columns("reply", reply, entries)
        await self._begin(conn)
        actual = self._store.process(key)
        recorded = None
        if reply is not None and replied is not None:
            recorded = found_for_reply(self._store, key, reply.command_id, replied)
        logged = [found_for_entry(self._store, key, row) for row in rows]
        if actual is not None and is_redelivery([*([] if reply is None else [recorded]), *logged]):
            _log.redelivered("advance", *key, None if reply is None else reply.command_id)
            if is_same_process(actual, values):
                set_stored(process, written(actual), is_committed=True)
            else:
                set_unlike_its_row(process)
            return False
        raise_first([why_not_updated(values, stamps, actual)])
        raise_first(why_not_taken(key, recorded, reply, logged, entries))
        for row in rows:
            self._store.insert_step(key, row)
        if reply is not None and replied is not None:
            self._store.record_reply(key, reply.command_id, replied)
        set_stored(process, self._store.update_process(key, values), is_committed=True)
        return True

    @override
    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        await self._begin(conn)
        return await save_many(self._store, processes, self._states.columns, ahead=conn is None)

    @override
    async def log_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        await self._begin(conn)
        return await log_many(self._store, steps, ahead=conn is None)


_BEFORE = {"created_before": "created_at", "updated_before": "updated_at", "deadline_before": "deadline"}


def _matches(row: Row, given: Mapping[str, Any]) -> bool:
    """Whether a process fits a checked filter. A column that is `None` fits no condition."""

    def fits(name: str, value: Any) -> bool:  # noqa: ANN401 - a column's value
        if name == "statuses":
            return row["status"] in value
        if name == "created_after":
            return bool(row["created_at"] >= value)
        if name in _BEFORE:
            time = row[_BEFORE[name]]
            return time is not None and bool(time < value)
        return bool(row[name] == value)

    return all(fits(name, value) for name, value in given.items())
