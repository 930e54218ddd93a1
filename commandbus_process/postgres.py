"""The process repository on PostgreSQL."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar, overload
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import RowMapping, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from commandbus_process import _statements
from commandbus_process._json import JSON_OBJECT, json_object_text, reason
from commandbus_process._state import StateCodec
from commandbus_process._transaction import run
from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessLockedError,
    ProcessNotFoundError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StoredDataError,
)
from commandbus_process.models import (
    EntryFields,
    JsonObject,
    Name,
    ProcessAuditEntry,
    ProcessFields,
    ProcessMetadata,
    ProcessStatus,
    StateT,
    UtcDatetime,
)
from commandbus_process.repository import ProcessRepository

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_TIME: TypeAdapter[datetime] = TypeAdapter(UtcDatetime)
_LIMIT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=2**31 - 1)])

CheckedT = TypeVar("CheckedT")

# How often a write is tried whose obstacle has gone by the time that it is looked for.
_ROUNDS = 10

# How get_by_id reads, by what `for_update` says.
_BY_LOCK: Mapping[bool | str, Select[Any]] = {
    False: _statements.GET_BY_ID,
    True: _statements.GET_BY_ID_LOCKING,
    "nowait": _statements.GET_BY_ID_UNLESS_LOCKED,
    "skip_locked": _statements.GET_BY_ID_UNLESS_LOCKED,
}


class PostgresProcessRepository(ProcessRepository[StateT]):
    """A process repository in the tables of `commandbus_process.tables`. Safe to share between tasks.

    Each method is one statement, and a second one only to find out why the first changed nothing. On a connection of
    the caller's that is one round trip; without one, BEGIN and COMMIT make it three.

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
        self._engine = engine
        self._states: StateCodec[StateT] = StateCodec(state_type)

    @override
    async def save(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        key = process.domain, process.process_id
        values = {**_checked_fields(process, _statements.NEW_PROCESS), "state": self._states.write(process)}

        async def work(connection: AsyncConnection) -> int:
            version: int | None = (await connection.execute(_statements.SAVE, values)).scalar_one_or_none()
            if version is None:
                raise ProcessAlreadyExistsError(*key)
            return version

        process.version = await run(self._engine, conn, work, key)

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        key, expected = (process.domain, process.process_id), process.version
        found = _found_by(*key)
        values = {
            **_checked_fields(process, _statements.STATE_CHANGES),
            "state": self._states.write(process),
            **found,
        }
        statement = _statements.UPDATE
        if expected is not None:
            statement = _statements.UPDATE_IF_UNCHANGED
            values["key_version"] = expected
        if self._states.depend_on_process_type:
            # Else the state, written as one process type, would be read as another.
            statement = statement.where(_statements.IS_OF_TYPE)
            values["key_process_type"] = process.process_type

        async def work(connection: AsyncConnection) -> RowMapping:
            row = (await connection.execute(statement, values)).mappings().one_or_none()
            if row is not None:
                return row
            actual = (await connection.execute(_statements.VERSION, found)).mappings().one_or_none()
            if actual is None:
                raise ProcessNotFoundError(*key)
            if expected is not None and expected != actual["version"]:
                raise ConcurrentUpdateError(*key, expected, actual["version"])
            if process.process_type != actual["process_type"]:
                raise InvalidInputError("process_type", f"is {actual['process_type']!r} in its row, and stays that")
            raise NothingWrittenError(*key)

        row = await run(self._engine, conn, work, key, expected)
        # Only now: where the commit fails, the object still says what was read.
        process.updated_at, process.version = row["updated_at"], row["version"]

    @override
    async def get_by_id(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        for_update: Literal[False, True, "nowait", "skip_locked"] = False,
    ) -> ProcessMetadata[StateT] | None:
        found = _found_by(domain, process_id)
        statement = _BY_LOCK.get(for_update)
        if statement is None:
            raise InvalidInputError("for_update", 'must be False, True, "nowait" or "skip_locked"')
        if for_update and conn is None:
            raise InvalidInputError("for_update", "needs conn: without one, the lock would be gone before it served")

        async def work(connection: AsyncConnection) -> RowMapping | None:
            row: RowMapping | None = (await connection.execute(statement, found)).mappings().one_or_none()
            # A statement with NOWAIT would fail, and abort the caller's transaction.
            if row is None and for_update == "nowait":
                there = (await connection.execute(_statements.VERSION, found)).scalar_one_or_none()
                if there is not None:
                    raise ProcessLockedError(domain, process_id)
            return row

        row = await run(self._engine, conn, work, (domain, process_id))
        return None if row is None else self._process(row)

    @override
    async def find_by_status(
        self, domain: str, statuses: Collection[ProcessStatus], conn: AsyncConnection | None = None
    ) -> list[ProcessMetadata[StateT]]:
        values = {"key_domain": _checked_name("domain", domain), "statuses": _status_values(statuses)}
        return await self._list(_statements.FIND_BY_STATUS, values, conn)

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
        values: dict[str, Any] = {
            "key_domain": _checked_name("domain", domain),
            "statuses": _status_values(statuses),
            "limit": _checked(_LIMIT, "limit", limit),
        }
        statement = _statements.CLAIM
        if process_type is not None:
            statement = statement.where(_statements.IS_OF_TYPE)
            values["key_process_type"] = _checked_name("process_type", process_type)
        if updated_before is not None:
            statement = statement.where(_statements.IS_UPDATED_BEFORE)
            values["updated_before"] = _checked(_TIME, "updated_before", updated_before)
        return await self._list(statement, values, conn)

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> None:
        _check_loggable(entry)
        values = {
            **_entry_values(entry, _statements.NEW_STEP),
            **_found_by(domain, process_id),
            "key_command_id": entry.command_id,
        }

        async def work(connection: AsyncConnection) -> None:
            # Whoever deletes the entry in the way, or saves the missing process, between the two statements makes this
            # go round once more.
            for _ in range(_ROUNDS):
                if (await connection.execute(_statements.LOG_STEP, values)).scalar_one_or_none() is not None:
                    return
                logged = (await connection.execute(_statements.LOGGED_STEP, values)).mappings().one_or_none()
                if logged is None:
                    raise ProcessNotFoundError(domain, process_id)
                if logged["same"]:
                    return
                if logged["command_id"] is not None:
                    raise StepAlreadyLoggedError(domain, process_id, _entry(domain, process_id, logged), entry)
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
        if entry.reply_outcome is None:
            raise InvalidInputError("entry.reply_outcome", "must be given in a reply")
        values = {
            **_entry_values(entry, _statements.REPLY),
            **_found_by(domain, process_id),
            "key_command_id": _checked_uuid("command_id", command_id),
        }

        async def work(connection: AsyncConnection) -> None:
            for _ in range(_ROUNDS):
                if (await connection.execute(_statements.RECORD_REPLY, values)).scalar_one_or_none() is not None:
                    return
                recorded = (await connection.execute(_statements.RECORDED_REPLY, values)).mappings().one_or_none()
                if recorded is None:
                    raise StepNotFoundError(domain, process_id, command_id)
                if recorded["same"]:
                    return
                if recorded["reply_outcome"] is not None:
                    raise ReplyConflictError(domain, process_id, _entry(domain, process_id, recorded), entry)
            raise NothingWrittenError(domain, process_id)

        await run(self._engine, conn, work, (domain, process_id))

    @override
    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        found = _found_by(domain, process_id)

        async def work(connection: AsyncConnection) -> Sequence[RowMapping]:
            return (await connection.execute(_statements.AUDIT_TRAIL, found)).mappings().all()

        return [_entry(domain, process_id, row) for row in await run(self._engine, conn, work, (domain, process_id))]

    @override
    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        found = _found_by(domain, process_id)

        async def work(connection: AsyncConnection) -> list[str]:
            return list((await connection.execute(_statements.COMPLETED_STEPS, found)).scalars())

        return await run(self._engine, conn, work, (domain, process_id))

    async def _list(
        self, statement: Select[Any], values: dict[str, Any], conn: AsyncConnection | None
    ) -> list[ProcessMetadata[StateT]]:
        if not values["statuses"]:
            return []

        async def work(connection: AsyncConnection) -> Sequence[RowMapping]:
            rows: Sequence[RowMapping] = (await connection.execute(statement, values)).mappings().all()
            return rows

        return [self._process(row) for row in await run(self._engine, conn, work)]

    def _process(self, row: RowMapping) -> ProcessMetadata[StateT]:
        domain, process_id, process_type = row["domain"], row["process_id"], row["process_type"]
        state = self._states.read(domain, process_id, process_type, row["state"])
        try:
            return self._states.metadata_type(process_type).model_validate({**row, "state": state})
        except ValidationError as error:
            raise StoredDataError(domain, process_id, reason(error)) from error


def _entry(domain: str, process_id: UUID, row: RowMapping) -> ProcessAuditEntry:
    values = {name: row[name] for name in (*_statements.COMMAND, *_statements.REPLY)}
    try:
        for name in ("command_data", "reply_data"):
            if values[name] is not None:
                values[name] = JSON_OBJECT.validate_json(values[name])
        return ProcessAuditEntry.model_validate(values)
    except ValidationError as error:
        raise StoredDataError(
            domain, process_id, reason(error), what=f"the stored entry of command {row['command_id']}"
        ) from error


def _checked_fields(model: ProcessFields | EntryFields, names: Collection[str]) -> dict[str, Any]:
    """Return the named fields, checked once more: `model_copy` and `model_construct` do not check them."""
    fields_type = ProcessFields if isinstance(model, ProcessFields) else EntryFields
    try:
        checked = fields_type.model_validate({name: getattr(model, name) for name in fields_type.model_fields})
    except ValidationError as error:
        raise InvalidInputError("process" if fields_type is ProcessFields else "entry", reason(error)) from error
    return {name: getattr(checked, name) for name in names if name in fields_type.model_fields}


def _check_loggable(entry: ProcessAuditEntry) -> None:
    if not entry.command_type:
        raise InvalidInputError("entry.command_type", "must not be empty in an entry that is logged")
    if entry.reply_outcome is None and (entry.reply_data is not None or entry.received_at is not None):
        raise InvalidInputError("entry.reply_outcome", "must be given with reply_data or received_at")


def _entry_values(entry: ProcessAuditEntry, names: Collection[str]) -> dict[str, Any]:
    """Return the named columns of an entry; a reply without a time was received now."""
    values = _checked_fields(entry, names)
    for name in ("command_data", "reply_data"):
        if name in names:
            values[name] = _optional_json(getattr(entry, name), f"entry.{name}")
    if entry.reply_outcome is not None and values["received_at"] is None:
        values["received_at"] = datetime.now(UTC)
    return values


def _optional_json(value: JsonObject | None, field: str) -> str | None:
    return None if value is None else json_object_text(value, field)


def _checked(adapter: TypeAdapter[CheckedT], field: str, value: CheckedT) -> CheckedT:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidInputError(field, reason(error)) from error


def _checked_name(field: str, value: str) -> str:
    return _checked(_NAME, field, value)


def _checked_uuid(field: str, value: UUID) -> UUID:
    if not isinstance(value, UUID):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError(field, f"must be a UUID, not {type(value).__name__}")
    return value


def _found_by(domain: str, process_id: UUID) -> dict[str, Any]:
    return {"key_domain": _checked_name("domain", domain), "key_process_id": _checked_uuid("process_id", process_id)}


def _status_values(statuses: Collection[ProcessStatus]) -> list[str]:
    if isinstance(statuses, str):
        raise InvalidInputError("statuses", f"must be a collection of statuses, such as [{statuses!r}]")
    try:
        # Each one once and always in the same order: the fewer statements there are, the more often one is prepared.
        return sorted({ProcessStatus(status).value for status in statuses})
    except ValueError as error:
        raise InvalidInputError("statuses", str(error)) from error
