"""The process repository on PostgreSQL."""

from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, overload
from uuid import UUID

from sqlalchemy import Connection, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from commandbus_process import _statements
from commandbus_process._advance import Step
from commandbus_process._bulk import log_many, save_many
from commandbus_process._conflicts import ROUNDS, check_as_expected
from commandbus_process._input import (
    LIMIT,
    NAME,
    TIME,
    check_loggable,
    check_reply,
    checked,
    checked_fields,
    checked_uuid,
    entry_values,
    found_by,
    reply_values,
    sent_values,
    status_values,
)
from commandbus_process._rows import Rows, Written, entries_of, entry_of, row_of, set_stored, written_of
from commandbus_process._state import StateCodec
from commandbus_process._transaction import check_engine, run
from commandbus_process.errors import (
    InvalidInputError,
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessLockedError,
    ProcessNotFoundError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from commandbus_process.models import JsonObject, ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT
from commandbus_process.repository import ProcessRepository
from commandbus_process.tables import FIRST_VERSION

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
            mapping from `process_type` to such a type. Without it, a state is a JSON object. A class stands for its
            subclasses too, if the process that reads has imported them. Type checkers infer the repository's parameter
            from classes; write it out for anything else: `PostgresProcessRepository[Order | Refund](...)`.
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
    async def save(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        key = process.domain, process.process_id
        state = self._states.write(process)
        values = {**checked_fields(process, _statements.NEW_PROCESS), "state": state}

        def work(connection: Connection) -> None:
            if connection.execute(_statements.SAVE, values).rowcount == 0:
                raise ProcessAlreadyExistsError(*key)

        await run(self._engine, conn, work, key)
        set_stored(process, FIRST_VERSION)

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        key, expected = (process.domain, process.process_id), process.version
        state = self._states.write(process)
        values = self._changes(process, state)

        def work(connection: Connection) -> Written:
            written = written_of(connection.execute(_statements.UPDATE, values))
            if written is not None:
                return written
            actual = row_of(connection.execute(_statements.VERSION, values))
            check_as_expected(values, actual)
            raise NothingWrittenError(*key)

        written = await run(self._engine, conn, work, key, expected)
        # Only now: where the statement fails, the object still says what was read.
        set_stored(process, written.version, written.updated_at)

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

        def work(connection: Connection) -> tuple[str, str] | None:
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
        self, domain: str, statuses: Collection[ProcessStatus], conn: AsyncConnection | None = None
    ) -> list[ProcessMetadata[StateT]]:
        values = {"key_domain": checked(NAME, "domain", domain)}
        wanted = status_values(statuses)
        if not wanted:
            return []
        statement = _statements.find_by_status(wanted)
        return self._states.read(await run(self._engine, conn, _reading(statement, values)))

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
    ) -> list[ProcessMetadata[StateT]]:
        if conn is None:  # pyright: ignore[reportUnnecessaryComparison] - callers may be untyped
            raise InvalidInputError("conn", "is needed: without one, the locks would be gone before they served")
        wanted = status_values(statuses)
        values: dict[str, Any] = {
            "key_domain": checked(NAME, "domain", domain),
            "limit": checked(LIMIT, "limit", limit),
        }
        if process_type is not None:
            values["key_process_type"] = checked(NAME, "process_type", process_type)
        if updated_before is not None:
            values["updated_before"] = checked(TIME, "updated_before", updated_before)
        if not wanted:
            return []
        statement = _statements.claim(
            wanted, of_type=process_type is not None, updated_before=updated_before is not None
        )
        return self._states.read(await run(self._engine, conn, _reading(statement, values)))

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> None:
        check_loggable(entry)
        values = {
            **entry_values(entry, _statements.NEW_STEP),
            **found_by(domain, process_id),
            "key_command_id": entry.command_id,
        }

        def work(connection: Connection) -> None:
            # Whoever deletes the entry in the way, or saves the missing process, between the two statements makes this
            # go round once more.
            for _ in range(ROUNDS):
                if connection.execute(_statements.LOG_STEP, values).rowcount:
                    return
                logged = row_of(connection.execute(_statements.LOGGED_STEP, values))
                if logged is None:
                    raise ProcessNotFoundError(domain, process_id)
                if logged["same"]:
                    return
                if logged["command_id"] is not None:
                    raise StepAlreadyLoggedError(domain, process_id, entry_of(domain, process_id, logged), entry)
            raise NothingWrittenError(domain, process_id)

        await run(self._engine, conn, work, (domain, process_id))

    @override
    async def update_step_reply(
        self,
        domain: str,
        process_id: UUID,
        command_id: UUID,
        entry: ProcessAuditEntry,
        conn: AsyncConnection | None = None,
    ) -> None:
        check_reply(entry)
        values = {
            **entry_values(entry, _statements.REPLY),
            **found_by(domain, process_id),
            "key_command_id": checked_uuid("command_id", command_id),
        }

        def work(connection: Connection) -> None:
            for _ in range(ROUNDS):
                if connection.execute(_statements.RECORD_REPLY, values).rowcount:
                    return
                recorded = row_of(connection.execute(_statements.RECORDED_REPLY, values))
                if recorded is None:
                    raise StepNotFoundError(domain, process_id, command_id)
                if recorded["same"]:
                    return
                if recorded["reply_outcome"] is not None:
                    raise ReplyConflictError(domain, process_id, entry_of(domain, process_id, recorded), entry)
            raise NothingWrittenError(domain, process_id)

        await run(self._engine, conn, work, (domain, process_id))

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
    async def advance(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        reply: ProcessAuditEntry | None = None,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        if process.version is None:
            raise InvalidInputError("process.version", "is needed: advance a process that was read or saved before")
        key = process.domain, process.process_id
        entries = [sent] if isinstance(sent, ProcessAuditEntry) else list(sent)
        state = self._states.write(process)
        values = self._changes(process, state)
        if reply is not None:
            values |= reply_values(reply, _statements.REPLY)
        if entries:
            values |= sent_values(entries, _statements.ENTRY)
        step = Step(process, reply, entries, values)
        written = await run(self._engine, conn, step.take, key, process.version)
        set_stored(process, written.version, written.updated_at)

    @override
    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        return await save_many(self._engine, conn, processes, self._states.write)

    @override
    async def log_steps(
        self,
        domain: str,
        process_id: UUID,
        entries: Iterable[ProcessAuditEntry] | AsyncIterable[ProcessAuditEntry],
        conn: AsyncConnection | None = None,
    ) -> int:
        found_by(domain, process_id)  # here, so that an error does not blame an entry
        return await log_many(self._engine, conn, "entries", entries, lambda entry: (domain, process_id, entry))

    @override
    async def log_steps_of_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        return await log_many(self._engine, conn, "steps", steps, lambda step: step)

    def _changes(self, process: ProcessMetadata[StateT], state: str) -> dict[str, Any]:
        """Return the parameters of an update."""
        return {
            **checked_fields(process, _statements.STATE_CHANGES),
            **found_by(process.domain, process.process_id),
            "state": state,
            "key_version": process.version,
            # Else the state, written as one process type, would be read as another.
            "key_process_type": process.process_type if self._states.depend_on_process_type else None,
        }


def _reading(statement: Select[Any], values: dict[str, Any]) -> Callable[[Connection], Rows]:
    return lambda connection: Rows(connection.execute(statement, values))
