"""A repository that passes all calls on to another one, for others to add something to."""

from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable
from datetime import datetime
from typing import Literal, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT, StepReply
from commandbus_process.repository import OnUnreadable, ProcessRepository

ResultT = TypeVar("ResultT")


class PassingRepository(ProcessRepository[StateT]):
    """A repository that passes all calls on to another one.

    Args:
        inner: The repository that does the work.
    """

    def __init__(self, inner: ProcessRepository[StateT]) -> None:
        self._inner = inner

    def _conn(self, conn: AsyncConnection | None) -> AsyncConnection | None:
        """Return the connection to pass on, for a call that does not need one."""
        return conn

    def _named(self, domain: str, process_id: UUID) -> None:
        """Note that a call is about a process."""

    async def _write(
        self,
        name: str,  # noqa: ARG002 - for subclasses
        call: Callable[[], Awaitable[ResultT]],
        process: ProcessMetadata[StateT] | None = None,  # noqa: ARG002 - for subclasses
    ) -> ResultT:
        """Run a writing call.

        Args:
            name: The name of the method.
            call: What to do.
            process: The process whose version the call compares, if it does.
        """
        return await call()

    @override
    async def save(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        self._named(process.domain, process.process_id)
        await self._write("save", lambda: self._inner.save(process, self._conn(conn), sent=sent))

    @override
    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        self._named(process.domain, process.process_id)
        await self._write("update", lambda: self._inner.update(process, self._conn(conn)), process)

    @override
    async def advance(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        reply: ProcessAuditEntry | StepReply | None = None,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> bool:
        self._named(process.domain, process.process_id)
        return await self._write(
            "advance", lambda: self._inner.advance(process, self._conn(conn), reply=reply, sent=sent), process
        )

    @override
    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> bool:
        self._named(domain, process_id)
        return await self._write("log_step", lambda: self._inner.log_step(domain, process_id, entry, self._conn(conn)))

    @override
    async def update_step_reply(
        self,
        domain: str,
        process_id: UUID,
        command_id: UUID,
        entry: ProcessAuditEntry | StepReply,
        conn: AsyncConnection | None = None,
    ) -> bool:
        self._named(domain, process_id)
        return await self._write(
            "update_step_reply",
            lambda: self._inner.update_step_reply(domain, process_id, command_id, entry, self._conn(conn)),
        )

    @override
    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        given = [each async for each in _each(processes)]
        for process in given:
            self._named(process.domain, process.process_id)
        return await self._write("save_many", lambda: self._inner.save_many(given, self._conn(conn)))

    @override
    async def log_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        given = [each async for each in _each(steps)]
        for domain, process_id, _ in given:
            self._named(domain, process_id)
        return await self._write("log_many", lambda: self._inner.log_many(given, self._conn(conn)))

    @override
    async def get_by_id(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        for_update: Literal[False, True, "nowait", "skip_locked"] = False,
    ) -> ProcessMetadata[StateT] | None:
        self._named(domain, process_id)
        return await self._inner.get_by_id(
            domain, process_id, conn if for_update else self._conn(conn), for_update=for_update
        )

    @override
    async def get_by_ids(
        self,
        domain: str,
        process_ids: Iterable[UUID],
        conn: AsyncConnection | None = None,
        *,
        on_unreadable: OnUnreadable = "raise",
    ) -> dict[UUID, ProcessMetadata[StateT]]:
        found = await self._inner.get_by_ids(domain, process_ids, self._conn(conn), on_unreadable=on_unreadable)
        for process_id in found:
            self._named(domain, process_id)
        return found

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
        found = await self._inner.find_by_status(
            domain, statuses, self._conn(conn), process_type=process_type, limit=limit, on_unreadable=on_unreadable
        )
        for process in found:
            self._named(domain, process.process_id)
        return found

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
        found = await self._inner.claim(
            domain,
            statuses,
            conn,
            limit=limit,
            process_type=process_type,
            current_step=current_step,
            business_key=business_key,
            updated_before=updated_before,
            deadline_before=deadline_before,
            on_unreadable=on_unreadable,
            by=by,
        )
        for process in found:
            self._named(domain, process.process_id)
        return found

    @override
    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        self._named(domain, process_id)
        return await self._inner.get_audit_trail(domain, process_id, self._conn(conn))

    @override
    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        self._named(domain, process_id)
        return await self._inner.get_completed_steps(domain, process_id, self._conn(conn))

    @override
    async def get_steps_to_compensate(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        include_unknown: bool = False,
    ) -> list[ProcessAuditEntry]:
        self._named(domain, process_id)
        return await self._inner.get_steps_to_compensate(
            domain, process_id, self._conn(conn), include_unknown=include_unknown
        )


async def _each(items: Iterable[ResultT] | AsyncIterable[ResultT]) -> AsyncIterable[ResultT]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
