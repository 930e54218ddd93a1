"""The repository class: each method checks its arguments, runs its statement, and turns rows into objects."""

from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, overload
from uuid import UUID

from sqlalchemy import Connection, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from commandbus_process import _log
from commandbus_process._arguments import (
    LIMIT,
    NAME,
    as_entries,
    changed_columns,
    check_loggable,
    check_process,
    check_uuid,
    check_uuids,
    checked,
    entry_columns,
    new_process_columns,
    reply_columns,
    sorted_statuses,
    unreadable_handler,
)
from commandbus_process._parameters import object_key, process_key, sent_parameters, step_key
from commandbus_process._refusals import (
    is_redelivery,
    match_row_again,
    raise_first,
    why_not_logged,
    why_not_recorded,
    write_or_explain,
)
from commandbus_process._stamps import (
    Written,
    forget_row,
    matching_stamps,
    set_stored,
    set_unlike_its_row,
)
from commandbus_process._state_versions import StateVersions
from commandbus_process._states import States
from commandbus_process.errors import (
    InvalidInputError,
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessLockedError,
)
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import (
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    StateT,
    StepReply,
)
from commandbus_process.postgres import _statements
from commandbus_process.postgres._advance import Step, is_part_written, save_statement
from commandbus_process.postgres._bulk import log_many, save_many
from commandbus_process.postgres._claiming import Claim
from commandbus_process.postgres._database import Database, Tables
from commandbus_process.postgres._listing import Listing
from commandbus_process.postgres._reading import ProcessReader, first_row, read_entries, read_written, reading
from commandbus_process.postgres._transaction import check_can_lock, is_in_autocommit, run
from commandbus_process.repository import OnUnreadable, ProcessRepository

# The statement of get_by_id for each value of `for_update`.
_BY_LOCK: Mapping[bool | str, Select[str, Any]] = {
    False: _statements.GET_BY_ID,
    True: _statements.GET_BY_ID_LOCKING,
    "nowait": _statements.GET_BY_ID_UNLESS_LOCKED,
    "skip_locked": _statements.GET_BY_ID_UNLESS_LOCKED,
}


class PostgresProcessRepository(ProcessRepository[StateT]):
    """A process repository in the tables of `commandbus_process.tables`. Safe to share between tasks.

    Each method about one process sends one statement in one round trip, with and without `conn`. It sends further
    statements only to find out why the first one wrote nothing.

    Args:
        engine: The engine from which a method without `conn` borrows a connection. You configure it and dispose of it.
        state_type: The type of the states: a Pydantic model, dataclass, TypedDict or union of them for every process,
            or a mapping from `process_type` to such a type. `StateVersions` declares a type that has changed. Without
            it, all states are of version 1. Without `state_type`, a state is a JSON object. Only declared classes
            are stored, so declare a union if there are several. Type checkers infer the repository's parameter if you
            pass classes. Otherwise write it out: `PostgresProcessRepository[Order | Refund](...)`.
        schema: The schema that has the tables. Without it, `commandbus`, or what a `schema_translate_map` of the engine
            or of your connection says.
    """

    @overload
    def __init__(
        self: "PostgresProcessRepository[JsonObject]", engine: AsyncEngine, *, schema: str | None = None
    ) -> None: ...
    @overload
    def __init__(
        self, engine: AsyncEngine, *, state_type: type[StateT] | Mapping[str, type[StateT]], schema: str | None = None
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine: AsyncEngine,
        *,
        state_type: StateVersions[StateT] | Mapping[str, StateVersions[StateT]],
        schema: str | None = None,
    ) -> None: ...
    @overload
    def __init__(self, engine: AsyncEngine, *, state_type: object, schema: str | None = None) -> None: ...
    def __init__(self, engine: AsyncEngine, *, state_type: object = None, schema: str | None = None) -> None:
        self._database = Database(engine, schema)
        self._states: States[StateT] = States(state_type)
        self._reader = ProcessReader(self._states)

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
        entries = as_entries(sent)
        values = {**new_process_columns(process), **self._states.columns(process)}
        if entries:
            values |= sent_parameters(entries)
        statement = save_statement(entries)

        def work(tables: Tables) -> Written:
            def write() -> Written | None:
                try:
                    return read_written(tables.execute(statement, values))
                except DBAPIError as error:
                    if not is_part_written(error):
                        raise
                    raise NothingWrittenError(*key) from error

            def explain() -> None:
                if first_row(tables.execute(_statements.WHY_NOT_WRITTEN, process_key(*key))) is not None:
                    raise ProcessAlreadyExistsError(*key)

            return write_or_explain(write, explain, lambda: key)

        written = await run(self._database, conn, work, key)
        forget_row(process)
        set_stored(process, written, is_committed=True)

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        check_process(process)
        key, stamps = (process.domain, process.process_id), matching_stamps(process)
        parameters = self._update_parameters(process)

        def work(tables: Tables) -> Written:
            values = dict(parameters)

            def explain() -> None:
                match_row_again(values, stamps, first_row(tables.execute(_statements.WHY_NOT_WRITTEN, values)))

            return write_or_explain(
                lambda: read_written(tables.execute(_statements.UPDATE, values)), explain, lambda: key
            )

        written = await run(self._database, conn, work, key, process.version)
        # Only now: if the statement fails, the object stays as it was read.
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
        key = process_key(domain, process_id)
        statement = _BY_LOCK.get(for_update)
        if statement is None:
            raise InvalidInputError("for_update", 'must be False, True, "nowait" or "skip_locked"')
        if for_update and conn is None:
            raise InvalidInputError("for_update", "needs conn: without it, the lock would end with the statement")
        locks = for_update is not False

        def work(tables: Tables) -> tuple[str, str] | None:
            if locks:
                check_can_lock(tables.connection)
            row = tables.execute(statement, key).first()
            if row is not None:
                return row.fields, row.state
            # A statement with NOWAIT would fail and abort the caller's transaction. So SKIP LOCKED is used instead.
            if for_update == "nowait" and first_row(tables.execute(_statements.WHY_NOT_WRITTEN, key)) is not None:
                raise ProcessLockedError(domain, process_id)
            return None

        row = await run(self._database, conn, work, (domain, process_id))
        if row is None:
            return None
        return self._reader.read_one(process_id, *row)

    @override
    async def get_by_ids(
        self,
        domain: str,
        process_ids: Iterable[UUID],
        conn: AsyncConnection | None = None,
        *,
        on_unreadable: OnUnreadable = "raise",
    ) -> dict[UUID, ProcessMetadata[StateT]]:
        handle = unreadable_handler(on_unreadable)
        ids = check_uuids("process_ids", process_ids)
        values = {"key_domain": checked(NAME, "domain", domain), "process_ids": ids}
        processes = self._reader.read_all(
            await run(self._database, conn, reading(_statements.GET_BY_IDS, values)), handle
        )
        found = {process.process_id: process for process in processes}
        return {each: found[each] for each in ids if each in found}

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
        listing = self._listing(wanted, limit)
        return await self._find(conn, listing, listing.find_by_status, on_unreadable)

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
        listing = self._listing(wanted, checked(LIMIT, "limit", limit))
        if by == "version":
            claim = Claim(listing, self._reader, unreadable_handler(on_unreadable))
            return await run(self._database, conn, claim.take)
        if by != "lock":
            raise InvalidInputError("by", 'must be "lock" or "version"')
        return await self._find(conn, listing, listing.claim, on_unreadable, check_can_lock)

    def _listing(self, wanted: ProcessFilter, limit: int | None) -> Listing:
        return Listing(wanted, self._states.process_types, None if limit is None else checked(LIMIT, "limit", limit))

    async def _find(
        self,
        conn: AsyncConnection | None,
        listing: Listing,
        statement: Callable[[], Select[Any]],
        on_unreadable: OnUnreadable,
        check: Callable[[Connection], None] | None = None,
    ) -> list[ProcessMetadata[StateT]]:
        """Read processes. Unreadable ones do not count towards the limit, so they never block those behind them."""
        handle = unreadable_handler(on_unreadable)
        found: list[ProcessMetadata[StateT]] = []
        is_complete = listing.is_empty
        while not is_complete:
            rows = await run(self._database, conn, reading(statement(), listing.parameters, check))
            processes = self._reader.read_all(rows, handle)
            found += processes
            is_complete = len(processes) == rows.count or not listing.look_further(rows, len(processes))
        return found

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> bool:
        check_loggable(entry)
        values = {**entry_columns(entry), **step_key(domain, process_id, entry.command_id)}

        def work(tables: Tables) -> bool:
            def explain() -> bool | None:
                logged = first_row(tables.execute(_statements.WHY_NOT_LOGGED, values))
                if is_redelivery([logged]):
                    return False
                raise_first([why_not_logged(domain, process_id, logged, entry)])
                return None

            return write_or_explain(
                lambda: bool(tables.execute(_statements.LOG_STEP, values).scalar()) or None,
                explain,
                lambda: (domain, process_id),
            )

        is_new = await run(self._database, conn, work, (domain, process_id))
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
        values = {**reply_columns("entry", entry), **step_key(domain, process_id, entry.command_id)}
        check_uuid("command_id", command_id)
        if command_id != entry.command_id:
            raise InvalidInputError("command_id", "is not the reply's command_id")

        def work(tables: Tables) -> bool:
            # A transaction that goes on will probably update the process next, so the process is locked first.
            goes_on = conn is not None and not is_in_autocommit(tables.connection)
            statement = _statements.RECORD_REPLY_AND_LOCK if goes_on else _statements.RECORD_REPLY

            def explain() -> bool | None:
                recorded = first_row(tables.execute(_statements.WHY_NOT_RECORDED, values))
                if is_redelivery([recorded]):
                    return False
                raise_first([why_not_recorded(domain, process_id, recorded, entry)])
                return None

            return write_or_explain(
                lambda: bool(tables.execute(statement, values).rowcount) or None,
                explain,
                lambda: (domain, process_id),
            )

        is_new = await run(self._database, conn, work, (domain, process_id))
        if not is_new:
            _log.redelivered("update_step_reply", domain, process_id, command_id)
        return is_new

    @override
    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        work = reading(_statements.AUDIT_TRAIL, process_key(domain, process_id))
        return read_entries(domain, process_id, await run(self._database, conn, work, (domain, process_id)))

    @override
    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        key = process_key(domain, process_id)

        def work(tables: Tables) -> list[str]:
            return [name for (name,) in tables.execute(_statements.COMPLETED_STEPS, key).all()]

        return await run(self._database, conn, work, (domain, process_id))

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
        work = reading(statement, process_key(domain, process_id))
        return read_entries(domain, process_id, await run(self._database, conn, work, (domain, process_id)))

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
        key = process.domain, process.process_id
        entries = as_entries(sent)
        values = self._update_parameters(process)
        if entries:
            values |= sent_parameters(entries)
        if reply is not None:
            values |= {**reply_columns("reply", reply, entries), "key_command_id": reply.command_id}
        step = Step(process, reply, entries, values)
        taken = await run(self._database, conn, step.take, key, process.version)
        if not taken.is_new:
            _log.redelivered("advance", *key, None if reply is None else reply.command_id)
        if taken.row is None:
            set_unlike_its_row(process)
        else:
            set_stored(process, taken.row, is_committed=conn is None)
        return taken.is_new

    @override
    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        return await save_many(self._database, conn, processes, self._states.columns)

    @override
    async def log_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        return await log_many(self._database, conn, steps)

    def _update_parameters(self, process: ProcessMetadata[StateT]) -> dict[str, Any]:
        """Return the parameters of the statements that update a process."""
        values = {**changed_columns(process), **object_key(process), **self._states.columns(process)}
        return {**values, "key_state_version": self._states.newest_replaced(process)}
