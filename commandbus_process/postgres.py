"""The process repository on PostgreSQL."""

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, overload
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from commandbus_process import _statements
from commandbus_process._json import JSON_OBJECT, json_object_text, reason
from commandbus_process._state import StateCodec
from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    ProcessAlreadyExistsError,
    ProcessNotFoundError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StoredDataError,
)
from commandbus_process.models import JsonObject, Name, ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT
from commandbus_process.repository import ProcessRepository

_NAME: TypeAdapter[str] = TypeAdapter(Name)


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

    def _connection(self, conn: AsyncConnection | None) -> AbstractAsyncContextManager[AsyncConnection]:
        """Decide where a method runs: in the caller's transaction, left as it is, or in one of its own."""
        if conn is None:
            return self._engine.begin()
        if not isinstance(conn, AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise TypeError(
                f"conn must be an AsyncConnection, not {type(conn).__name__}; an AsyncSession has one: "
                "await session.connection()"
            )
        return nullcontext(conn)

    @override
    async def save(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        values = {**_values(process, _statements.NEW_PROCESS), "state": self._states.write(process)}
        async with self._connection(conn) as connection:
            result = await connection.execute(_statements.SAVE, values)
            version = result.scalar_one_or_none()
            if version is None:
                raise ProcessAlreadyExistsError(process.domain, process.process_id)
        process.version = version

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        key = _process_key(process.domain, process.process_id)
        values = {**_values(process, _statements.STATE_CHANGES), "state": self._states.write(process), **key}
        statement = _statements.UPDATE
        if process.version is not None:
            statement = _statements.UPDATE_IF_UNCHANGED
            values["key_version"] = process.version
        async with self._connection(conn) as connection:
            row = (await connection.execute(statement, values)).mappings().one_or_none()
            if row is None:
                actual = (await connection.execute(_statements.VERSION, key)).scalar_one_or_none()
                if actual is None or process.version is None:
                    raise ProcessNotFoundError(process.domain, process.process_id)
                raise ConcurrentUpdateError(process.domain, process.process_id, process.version, actual)
        # Only now: where the commit fails, the object still says what was read.
        process.updated_at, process.version = row["updated_at"], row["version"]

    @override
    async def get_by_id(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> ProcessMetadata[StateT] | None:
        key = _process_key(domain, process_id)
        async with self._connection(conn) as connection:
            row = (await connection.execute(_statements.GET_BY_ID, key)).mappings().one_or_none()
        return None if row is None else self._process(row)

    @override
    async def find_by_status(
        self, domain: str, statuses: Collection[ProcessStatus], conn: AsyncConnection | None = None
    ) -> list[ProcessMetadata[StateT]]:
        values = {"key_domain": _checked_name("domain", domain), "statuses": _status_values(statuses)}
        if not values["statuses"]:
            return []
        async with self._connection(conn) as connection:
            rows = (await connection.execute(_statements.FIND_BY_STATUS, values)).mappings().all()
        return [self._process(row) for row in rows]

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> None:
        key = {**_process_key(domain, process_id), "key_command_id": entry.command_id}
        values = {**_entry_values(entry), **key}
        async with self._connection(conn) as connection:
            # Whoever deletes the entry in the way, or saves the missing process, between the two statements makes this
            # go round once more.
            while (await connection.execute(_statements.LOG_STEP, values)).scalar_one_or_none() is None:
                logged = (await connection.execute(_statements.LOGGED_STEP, values)).mappings().one_or_none()
                if logged is None:
                    raise ProcessNotFoundError(domain, process_id)
                if logged["same"]:
                    return
                if logged["command_id"] is not None:
                    raise StepAlreadyLoggedError(domain, process_id, _entry(domain, process_id, logged), entry)

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
        key = {**_process_key(domain, process_id), "key_command_id": _checked_uuid("command_id", command_id)}
        values = {**_reply_values(entry), **key}
        async with self._connection(conn) as connection:
            while (await connection.execute(_statements.RECORD_REPLY, values)).scalar_one_or_none() is None:
                recorded = (await connection.execute(_statements.RECORDED_REPLY, values)).mappings().one_or_none()
                if recorded is None:
                    raise StepNotFoundError(domain, process_id, command_id)
                if recorded["same"]:
                    return
                if recorded["reply_outcome"] is not None:
                    raise ReplyConflictError(domain, process_id, _entry(domain, process_id, recorded), entry)

    @override
    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        key = _process_key(domain, process_id)
        async with self._connection(conn) as connection:
            rows = (await connection.execute(_statements.AUDIT_TRAIL, key)).mappings().all()
        return [_entry(domain, process_id, row) for row in rows]

    @override
    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        key = _process_key(domain, process_id)
        async with self._connection(conn) as connection:
            return list((await connection.execute(_statements.COMPLETED_STEPS, key)).scalars())

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


def _values(model: ProcessMetadata[Any] | ProcessAuditEntry, names: Collection[str]) -> dict[str, Any]:
    return {name: getattr(model, name) for name in names}


def _entry_values(entry: ProcessAuditEntry) -> dict[str, Any]:
    if not entry.command_type:
        raise InvalidInputError("entry.command_type", "must not be empty in an entry that is logged")
    values = _values(entry, (*_statements.COMMAND, *_statements.REPLY))
    values["command_data"] = _optional_json(entry.command_data, "entry.command_data")
    if entry.reply_outcome is not None:
        values.update(_reply_values(entry))
    elif entry.reply_data is not None or entry.received_at is not None:
        raise InvalidInputError("entry.reply_outcome", "must be given with reply_data or received_at")
    return values


def _reply_values(entry: ProcessAuditEntry) -> dict[str, Any]:
    return {
        "reply_outcome": entry.reply_outcome,
        "reply_data": _optional_json(entry.reply_data, "entry.reply_data"),
        "received_at": entry.received_at or datetime.now(UTC),
    }


def _optional_json(value: JsonObject | None, field: str) -> str | None:
    return None if value is None else json_object_text(value, field)


def _checked_name(field: str, value: str) -> str:
    try:
        return _NAME.validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidInputError(field, reason(error)) from error


def _checked_uuid(field: str, value: UUID) -> UUID:
    if not isinstance(value, UUID):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError(field, f"must be a UUID, not {type(value).__name__}")
    return value


def _process_key(domain: str, process_id: UUID) -> dict[str, Any]:
    return {"key_domain": _checked_name("domain", domain), "key_process_id": _checked_uuid("process_id", process_id)}


def _status_values(statuses: Collection[ProcessStatus]) -> list[str]:
    if isinstance(statuses, str):
        raise InvalidInputError("statuses", f"must be a collection of statuses, such as [{statuses!r}]")
    try:
        # Each one once and always in the same order: the fewer statements there are, the more often one is prepared.
        return sorted({ProcessStatus(status).value for status in statuses})
    except ValueError as error:
        raise InvalidInputError("statuses", str(error)) from error
