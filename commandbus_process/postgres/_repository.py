"""The process repository on PostgreSQL."""

from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, overload
from uuid import UUID

from sqlalchemy import Connection, Executable, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from commandbus_process import _log
from commandbus_process._arguments import (
    LIMIT,
    NAME,
    STORED_NAME,
    TIME,
    changed_fields,
    check_loggable,
    check_process,
    checked,
    checked_fields,
    checked_uuid,
    entry_values,
    found_by,
    reply_values,
    sent_entries,
    sent_values,
    status_values,
    unreadable_handler,
)
from commandbus_process._states import StateCodec
from commandbus_process.errors import (
    InvalidInputError,
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessLockedError,
)
from commandbus_process.models import (
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    StateT,
    StepReply,
)
from commandbus_process.postgres import _statements
from commandbus_process.postgres._advance import Step, is_part_written
from commandbus_process.postgres._bulk import log_many, save_many
from commandbus_process.postgres._reading import (
    Rows,
    Written,
    entries_of,
    first_row,
    forget_row,
    read_written,
    set_stored,
    set_unlike_its_row,
    stamps_of,
)
from commandbus_process.postgres._refusals import ROUNDS, logging_error, raise_first, reply_error, stamp_to_try
from commandbus_process.postgres._transaction import check_can_lock, check_engine, is_in_autocommit, run
from commandbus_process.repository import OnUnreadable, ProcessRepository

# How get_by_id reads, by what `for_update` says.
_BY_LOCK: Mapping[bool | str, Select[str, Any]] = {
    False: _statements.GET_BY_ID,
    True: _statements.GET_BY_ID_LOCKING,
    "nowait": _statements.GET_BY_ID_UNLESS_LOCKED,
    "skip_locked": _statements.GET_BY_ID_UNLESS_LOCKED,
}


class PostgresProcessRepository(ProcessRepository[StateT]):
    """A process repository in the tables of `commandbus_process.tables`. Safe to share between tasks.

    Each method is one statement and one round trip, on the caller's connection as well as without one, and a second one
    only to find out why the first changed nothing.

    Args:
        engine: Where a method called without `conn` borrows a connection. It stays the caller's to configure and to
            dispose of.
        state_type: What states are: a Pydantic model, dataclass, TypedDict or union of them for every process, or a
            mapping from `process_type` to such a type. Without it, a state is a JSON object. Only declared classes are
            stored: declare a union for several. Type checkers infer the repository's parameter from classes; write it
            out for anything else: `PostgresProcessRepository[Order | Refund](...)`.
    """

    @overload
    def __init__(self: "PostgresProcessRepository[JsonObject]", engine: AsyncEngine) -> None: ...
    @overload
    def __init__(self, engine: AsyncEngine, *, state_type: type[StateT] | Mapping[str, type[StateT]]) -> None: ...
    @overload
    def __init__(self, engine: AsyncEngine, *, state_type: object) -> None: ...
    def __init__(self, engine: AsyncEngine, *, state_type: object = None) -> None:
        check_engine(engine)
        self._engine = engine
        self._states: StateCodec[StateT] = StateCodec(state_type)

    @override
    async def save(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        check_process(process)
        key = process.domain, process.process_id
        entries = sent_entries(sent)
        values = {**checked_fields(process, _statements.NEW_PROCESS), "state": self._states.write(process)}
        statement: Executable = _statements.SAVE
        if entries:
            values |= sent_values(entries, _statements.ENTRY)
            statement = _statements.SAVE_WITH_ONE_SENT if len(entries) == 1 else _statements.SAVE_WITH_SENT
        keys = {"key_domain": key[0], "key_process_id": key[1]}

        def work(connection: Connection) -> Written:
            for _ in range(ROUNDS):
                try:
                    written = read_written(connection.execute(statement, values))
                except DBAPIError as error:
                    if not is_part_written(error):
                        raise
                    raise NothingWrittenError(*key) from error
                if written is not None:
                    return written
                if first_row(connection.execute(_statements.VERSION, keys)) is not None:
                    raise ProcessAlreadyExistsError(*key)
            raise NothingWrittenError(*key)

        written = await run(self._engine, conn, work, key)
        forget_row(process)
        set_stored(process, written, is_committed=True)

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        check_process(process)
        key, stamps = (process.domain, process.process_id), stamps_of(process)
        values = self._changes(process)

        def work(connection: Connection) -> Written:
            tried = dict(values)
            for _ in range(ROUNDS):
                written = read_written(connection.execute(_statements.UPDATE, tried))
                if written is not None:
                    return written
                actual = first_row(connection.execute(_statements.VERSION, tried))
                tried["key_stamp"] = stamp_to_try(tried, stamps, actual)
            raise NothingWrittenError(*key)

        written = await run(self._engine, conn, work, key, process.version)
        # Only now: if the statement fails, the object still says what was read.
        set_stored(process, written, is_committed=conn is None)

    @override
    async def get_by_id(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        for_update: Literal[False, True, "nowait", "skip_locked"] = False,
    ) -> ProcessMetadata[StateT] | None:
        found = found_by(domain, process_id)
        statement = _BY_LOCK.get(for_update)
        if statement is None:
            raise InvalidInputError("for_update", 'must be False, True, "nowait" or "skip_locked"')
        if for_update and conn is None:
            raise InvalidInputError("for_update", "needs conn: without one, the lock would be gone before it served")
        locks = for_update is not False

        def work(connection: Connection) -> tuple[str, str] | None:
            if locks:
                check_can_lock(connection)
            row = connection.execute(statement, found).first()
            if row is not None:
                return row.fields, row.state
            # A statement with NOWAIT would fail, and abort the caller's transaction.
            if for_update == "nowait" and connection.execute(_statements.VERSION, found).one_or_none() is not None:
                raise ProcessLockedError(domain, process_id)
            return None

        row = await run(self._engine, conn, work, (domain, process_id))
        if row is None:
            return None
        return self._states.read_one(process_id, *row)

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
        wanted, values = self._filter(domain, statuses, process_type, limit)

        def statement(*, skipping: bool) -> Select[Any]:
            of_types = "key_process_types" in values
            return _statements.find_by_status(wanted, of_types=of_types, limited=limit is not None, skipping=skipping)

        return await self._find(conn, wanted, statement, values, on_unreadable, check=None)

    @override
    async def claim(
        self,
        domain: str,
        statuses: Collection[ProcessStatus],
        conn: AsyncConnection,
        *,
        limit: int,
        process_type: str | None = None,
        updated_before: datetime | None = None,
        on_unreadable: OnUnreadable = "raise",
    ) -> list[ProcessMetadata[StateT]]:
        if conn is None:  # pyright: ignore[reportUnnecessaryComparison] - callers may be untyped
            raise InvalidInputError("conn", "is needed: without one, the locks would be gone before they served")
        wanted, values = self._filter(domain, statuses, process_type, checked(LIMIT, "limit", limit))
        if updated_before is not None:
            values["updated_before"] = checked(TIME, "updated_before", updated_before)

        def statement(*, skipping: bool) -> Select[Any]:
            of_types = "key_process_types" in values
            return _statements.claim(
                wanted, of_types=of_types, updated_before=updated_before is not None, skipping=skipping
            )

        return await self._find(conn, wanted, statement, values, on_unreadable, check=check_can_lock)

    def _filter(
        self, domain: str, statuses: Collection[ProcessStatus], process_type: str | None, limit: int | None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the statuses to look for, and the parameters."""
        values: dict[str, Any] = {"key_domain": checked(NAME, "domain", domain)}
        known = self._states.process_types
        if process_type is not None:
            if known is not None and process_type not in known:
                raise InvalidInputError("process_type", f"no state type is declared for {process_type!r} in state_type")
            values["key_process_types"] = [checked(NAME, "process_type", process_type)]
        elif known is not None:
            values["key_process_types"] = sorted(known)  # the others are another program's
        if limit is not None:
            values["limit"] = checked(LIMIT, "limit", limit)
        return status_values(statuses), values

    async def _find(
        self,
        conn: AsyncConnection | None,
        wanted: Sequence[str],
        statement: Callable[..., Select[Any]],
        values: dict[str, Any],
        on_unreadable: OnUnreadable,
        *,
        check: Callable[[Connection], None] | None,
    ) -> list[ProcessMetadata[StateT]]:
        """Read processes. Those that cannot be read do not count, so that they never stop the ones behind them."""
        handle = unreadable_handler(on_unreadable)
        found: list[ProcessMetadata[StateT]] = []
        seen: list[UUID] = []
        limit = values.get("limit")
        while wanted:
            rows = await run(self._engine, conn, _reading(statement(skipping=bool(seen)), values, check))
            processes = self._states.read(rows, handle)
            found += processes
            if limit is None or rows.count < values["limit"] or len(processes) == rows.count:
                break
            seen += rows.columns["process_id"]
            values = {**values, "limit": limit - len(found), "seen": seen}
        return found

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> bool:
        check_loggable(entry)
        values = {
            **entry_values(entry, _statements.NEW_STEP),
            **found_by(domain, process_id),
            "key_command_id": entry.command_id,
        }

        def work(connection: Connection) -> bool:
            # Whoever deletes the entry in the way between the two statements makes this go round once more.
            for _ in range(ROUNDS):
                if connection.execute(_statements.LOG_STEP, values).rowcount:
                    return True
                logged = first_row(connection.execute(_statements.LOGGED_STEP, values))
                if logged is not None and logged["same"]:
                    return False
                raise_first([logging_error(domain, process_id, logged, entry)])
            raise NothingWrittenError(domain, process_id)

        is_new = await run(self._engine, conn, work, (domain, process_id))
        if not is_new:
            _log.redelivered("log_step", domain, process_id, entry.command_id)
        return is_new

    @override
    async def update_step_reply(
        self,
        domain: str,
        process_id: UUID,
        command_id: UUID,
        entry: ProcessAuditEntry | StepReply,
        conn: AsyncConnection | None = None,
    ) -> bool:
        values = {**reply_values("entry", entry), **found_by(domain, process_id)}
        if checked_uuid("command_id", command_id) != values["key_command_id"]:
            raise InvalidInputError("command_id", "is not that of the reply")

        def work(connection: Connection) -> bool:
            # A transaction that goes on will probably update the process next.
            goes_on = conn is not None and not is_in_autocommit(connection)
            statement = _statements.RECORD_REPLY_AND_LOCK if goes_on else _statements.RECORD_REPLY
            for _ in range(ROUNDS):
                if connection.execute(statement, values).rowcount:
                    return True
                recorded = first_row(connection.execute(_statements.RECORDED_REPLY, values))
                if recorded is not None and recorded["same"]:
                    return False
                raise_first([reply_error(domain, process_id, recorded, entry)])
            raise NothingWrittenError(domain, process_id)

        is_new = await run(self._engine, conn, work, (domain, process_id))
        if not is_new:
            _log.redelivered("update_step_reply", domain, process_id, command_id)
        return is_new

    @override
    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        work = _reading(_statements.AUDIT_TRAIL, found_by(domain, process_id))
        return entries_of(domain, process_id, await run(self._engine, conn, work, (domain, process_id)))

    @override
    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        found = found_by(domain, process_id)

        def work(connection: Connection) -> list[str]:
            return [name for (name,) in connection.execute(_statements.COMPLETED_STEPS, found).all()]

        return await run(self._engine, conn, work, (domain, process_id))

    @override
    async def get_steps_to_compensate(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        include_unknown: bool = False,
    ) -> list[ProcessAuditEntry]:
        statement = _statements.STEPS_TO_COMPENSATE_OR_UNKNOWN if include_unknown else _statements.STEPS_TO_COMPENSATE
        work = _reading(statement, found_by(domain, process_id))
        return entries_of(domain, process_id, await run(self._engine, conn, work, (domain, process_id)))

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
            raise InvalidInputError("process.version", "is needed: advance a process that was read or saved before")
        key = process.domain, process.process_id
        entries = sent_entries(sent)
        values = self._changes(process)
        if entries:
            values |= sent_values(entries, _statements.ENTRY)
        if reply is not None:
            values |= reply_values("reply", reply, entries)
        step = Step(process, reply, entries, values)
        done = await run(self._engine, conn, step.take, key, process.version)
        if isinstance(done, Written):
            set_stored(process, done, is_committed=conn is None)
            return True
        _log.redelivered("advance", *key, None if reply is None else reply.command_id)
        if done.row is None:
            set_unlike_its_row(process)
        else:
            set_stored(process, done.row, is_committed=conn is None)
        return False

    @override
    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        return await save_many(self._engine, conn, processes, self._states.write)

    @override
    async def log_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        return await log_many(self._engine, conn, steps)

    def _changes(self, process: ProcessMetadata[StateT]) -> dict[str, Any]:
        """Return the parameters of an update. The stamp of the row that the object matches has the version, too."""
        stamps = stamps_of(process)
        return {
            **changed_fields(process, _statements.STATE_CHANGES),
            **found_by(process.domain, process.process_id),
            "state": self._states.write(process),
            "key_process_type": checked(STORED_NAME, "process_type", process.process_type),
            "key_version": None if stamps else process.version,
            "key_stamp": stamps[-1] if stamps else None,
        }


def _reading(
    statement: Select[Any], values: dict[str, Any], check: Callable[[Connection], None] | None = None
) -> Callable[[Connection], Rows]:
    def work(connection: Connection) -> Rows:
        if check is not None:
            check(connection)
        return Rows(connection.execute(statement, values))

    return work
