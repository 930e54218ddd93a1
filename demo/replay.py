"""Replay an event log: write each case as a process manager would have written it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    tables,
)
from demo.event_log import Case, Event
from demo.rules import PROCESS_TYPE, case_process_id, final_status, step_command_id, step_outcome

if TYPE_CHECKING:
    from uuid import UUID

TASKS = 8
"""How many cases are replayed at the same time."""

_LONGEST_TRANSACTION = 60  # seconds; usually it takes a few milliseconds
_LONGEST_IMPORT = 600


@dataclass(slots=True)
class Totals:
    """What a replay did."""

    cases: int = 0
    steps: int = 0
    transactions: int = 0
    seconds: float = 0.0


async def replay(
    engine: AsyncEngine, domain: str, cases: Iterable[Case], on_step: Callable[[], None] = lambda: None
) -> Totals:
    """Replay every case as a process. Several cases run at a time, but the events of one case run in order.

    Args:
        engine: The database, migrated to the newest revision.
        domain: The domain of the new processes.
        cases: The cases to replay.
        on_step: Called after each step, when its reply is recorded.
    """
    totals = Totals()
    waiting = iter(cases)
    begin = perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(_work(_Manager(engine, domain, totals, on_step), waiting))
    except ExceptionGroup as group_of_errors:  # the first one made the group cancel the other tasks
        raise group_of_errors.exceptions[0] from None
    totals.seconds = perf_counter() - begin
    return totals


async def _work(manager: "_Manager", waiting: Iterator[Case]) -> None:
    for case in waiting:  # the tasks share the iterator, so each case goes to one task
        await manager.replay_case(case)


async def remove(engine: AsyncEngine, domain: str) -> None:
    """Delete the domain's processes and their audit trails, and nothing else."""
    async with asyncio.timeout(_LONGEST_TRANSACTION), engine.begin() as conn:
        await conn.execute(delete(tables.process_audit).where(tables.process_audit.c.domain == domain))
        await conn.execute(delete(tables.process).where(tables.process.c.domain == domain))


class _Manager:
    def __init__(self, engine: AsyncEngine, domain: str, totals: Totals, on_step: Callable[[], None]) -> None:
        self._engine = engine
        self._repository = PostgresProcessRepository(engine)
        self._domain = domain
        self._totals = totals
        self._on_step = on_step

    async def replay_case(self, case: Case) -> None:
        """Start the process, then handle the reply to each of its commands."""
        process = await self._start(case)
        outcomes: list[ReplyOutcome] = []
        for position in range(len(case.events)):
            outcomes.append(step_outcome(case.events[position].transition))
            await self._handle_reply(process, case, position, outcomes)
            self._totals.steps += 1
            self._on_step()
        self._totals.cases += 1

    async def _start(self, case: Case) -> ProcessMetadata:
        first = case.events[0]
        process = ProcessMetadata[JsonObject](
            domain=self._domain,
            process_id=case_process_id(self._domain, case.case_id),
            process_type=PROCESS_TYPE,
            state={"case": case.case_id, "attributes": {}, "steps_done": 0, "last_step": None},
            status=ProcessStatus.WAITING_FOR_REPLY,
            current_step=first.activity,
            created_at=first.time,
        )
        # The process and its first command are written together or not at all. In an application, the same transaction
        # would also write the command to the outbox.
        async with self._transaction() as conn:
            await self._repository.save(process, conn)
            command = _command(process.process_id, case, 0)
            await self._repository.log_step(self._domain, process.process_id, command, conn)
        return process

    async def _handle_reply(
        self, process: ProcessMetadata, case: Case, position: int, outcomes: list[ReplyOutcome]
    ) -> None:
        event = case.events[position]
        is_last = position + 1 == len(case.events)
        process.state = _state_after(process.state, event)
        if outcomes[-1] == ReplyOutcome.FAILED:
            process.error_code = event.transition.casefold()
            process.error_message = f"The step {event.activity!r} failed."
        if is_last:
            process.status = final_status(outcomes)
            process.current_step = None
            process.completed_at = event.time
        else:
            in_order = all(outcome == ReplyOutcome.SUCCESS for outcome in outcomes)
            process.status = ProcessStatus.WAITING_FOR_REPLY if in_order else ProcessStatus.COMPENSATING
            process.current_step = case.events[position + 1].activity
        # The reply, the process and the next command are written together or not at all.
        reply = _reply(process.process_id, case, position)
        sent = [] if is_last else [_command(process.process_id, case, position + 1)]
        async with self._transaction() as conn:
            await self._repository.advance(process, conn, reply=reply, sent=sent)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[AsyncConnection]:
        async with asyncio.timeout(_LONGEST_TRANSACTION), self._engine.begin() as conn:
            yield conn
        self._totals.transactions += 1


def _state_after(state: JsonObject, event: Event) -> JsonObject:
    """Return the state with the event's attributes of the case. A later value replaces an earlier one."""
    attributes, steps_done = state["attributes"], state["steps_done"]
    if not isinstance(attributes, dict) or not isinstance(steps_done, int):
        raise TypeError("the state is not one that this manager wrote")
    return {
        **state,
        "attributes": {**attributes, **event.case_attributes},
        "steps_done": steps_done + 1,
        "last_step": event.activity,
    }


def _command(process_id: "UUID", case: Case, position: int) -> ProcessAuditEntry:
    event = case.events[position]
    return ProcessAuditEntry(
        step_name=event.activity,
        command_id=step_command_id(process_id, position),
        command_type=event.activity,
        command_data=dict(event.attributes),
        # The log has only the time when a step ended. A command is sent when the previous reply was handled.
        sent_at=case.events[max(position - 1, 0)].time,
    )


def _reply(process_id: "UUID", case: Case, position: int) -> ProcessAuditEntry:
    event = case.events[position]
    return _command(process_id, case, position).model_copy(
        update={
            "reply_outcome": step_outcome(event.transition),
            "reply_data": {"lifecycle:transition": event.transition} if event.transition else None,
            "received_at": event.time,
        }
    )


async def import_in_bulk(
    engine: AsyncEngine, domain: str, processes: Iterable[ProcessMetadata], cases: Iterable[Case]
) -> tuple[int, int, float]:
    """Import ended processes and all of their steps in bulk, in a transaction that is rolled back at the end.

    Returns:
        The number of processes, the number of steps, and the seconds that it took.
    """
    repository = PostgresProcessRepository(engine)
    steps = (
        (domain, case_process_id(domain, case.case_id), _reply(case_process_id(domain, case.case_id), case, position))
        for case in cases
        for position in range(len(case.events))
    )
    begin = perf_counter()
    async with asyncio.timeout(_LONGEST_IMPORT), engine.connect() as conn, conn.begin() as transaction:
        saved = await repository.save_many(processes, conn)
        logged = await repository.log_many(steps, conn)
        seconds = perf_counter() - begin
        await transaction.rollback()
    return saved, logged, seconds
