"""Workers that do what applications do with the repository, and note the results in a ledger."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from uuid import UUID, uuid4

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessStatus,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from tests.faults.ledger import Kind, Ledger, Outcome, Write, reply, step

# How many calls of the repository each kind of write is.
CALLS = {
    Kind.START: 2,
    Kind.HANDLE_REPLY: 4,
    Kind.SAVE: 1,
    Kind.UPDATE: 2,
    Kind.LOG_STEP: 1,
    Kind.RECORD_REPLY: 1,
    Kind.TAKE_STEP: 4,
    Kind.RETRY: 3,
    Kind.LOCK: 2,
    Kind.CLAIM: 2,
}
ON_A_CONNECTION = frozenset({Kind.START, Kind.HANDLE_REPLY, Kind.LOCK, Kind.CLAIM})

_WEIGHTS = {
    Kind.START: 20,
    Kind.HANDLE_REPLY: 20,
    Kind.TAKE_STEP: 20,
    Kind.RETRY: 10,
    Kind.LOCK: 5,
    Kind.CLAIM: 5,
    Kind.SAVE: 5,
    Kind.UPDATE: 15,
    Kind.LOG_STEP: 15,
    Kind.RECORD_REPLY: 10,
}
# Others are first; or what an acknowledged write made is not there: then it is lost, and is counted in the end.
_REFUSALS = (
    ConcurrentUpdateError,
    ReplyConflictError,
    ProcessNotFoundError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)

# Few enough that workers get into each other's way now and then, and that states stay short.
_TARGETS = 30
_REACHABLE_AGAIN = 60.0  # seconds; a restart takes less than one


class Load:
    """The writes of an application, on processes of a domain of its own.

    Attributes:
        ledger: What was written.
        operations: Calls of the repository in acknowledged writes, by the kind of write.
        interruptions: How often a write lost its connection.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._repository = PostgresProcessRepository(engine)
        self._started: deque[UUID] = deque(maxlen=_TARGETS)  # processes with a step that waits for its reply
        self._stored: deque[UUID] = deque(maxlen=_TARGETS)  # processes of either kind
        self._logged: deque[tuple[UUID, UUID]] = deque(maxlen=_TARGETS)  # steps that log_step logged alone
        self._awaited = 0
        self._is_awaited_number_done = asyncio.Event()
        self.ledger = Ledger()
        self.operations: Counter[Kind] = Counter()
        self.interruptions = 0

    async def more_operations(self, number: int) -> None:
        """Return as soon as so many more of them were acknowledged. For one caller at a time."""
        self._awaited = self.operations.total() + number
        self._is_awaited_number_done.clear()
        await self._is_awaited_number_done.wait()

    async def work(self, random: Random, is_over: Callable[[], bool]) -> None:
        """Write one thing after the other, as one worker, and go on after a loss of the connection."""
        while not is_over():
            write, run = self.choose(random)
            # A worker whose message is delivered again does the same again; one whose message is not, never hears.
            await self._carry_out(write, run, is_redelivered=random.random() < 0.5)

    def choose(self, random: Random) -> tuple[Write, Callable[[], Awaitable[None]]]:
        """Note a write of a random kind in the ledger; give it, and what does it, as often as it is called."""
        [kind] = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        return self.prepare(kind, random)

    def prepare(self, kind: Kind, random: Random) -> tuple[Write, Callable[[], Awaitable[None]]]:
        """Note a write of this kind in the ledger; of another kind if there is nothing that it could write to."""
        if kind is Kind.HANDLE_REPLY and self._started:
            write = self.ledger.begin(kind, random.choice(self._started))
            return write, lambda: self._handle_reply(write)
        if kind is Kind.TAKE_STEP and self._started:
            write = self.ledger.begin(kind, random.choice(self._started))
            message: list[UUID] = []
            return write, lambda: self._take_step(write, message)
        one_process = {
            Kind.UPDATE: self._update,
            Kind.RETRY: self._retry,
            Kind.LOCK: self._lock,
            Kind.CLAIM: self._claim,
            Kind.LOG_STEP: self._log_step,
        }
        if kind in one_process and self._stored:
            write = self.ledger.begin(kind, random.choice(self._stored))
            return write, lambda: one_process[kind](write)
        if kind is Kind.RECORD_REPLY and self._logged:
            process_id, command_id = random.choice(self._logged)
            write = self.ledger.begin(kind, process_id)
            return write, lambda: self._record_reply(write, command_id)
        if kind is Kind.SAVE:
            write = self.ledger.begin(kind, uuid4())
            return write, lambda: self._save(write)
        write = self.ledger.begin(Kind.START, uuid4())
        return write, lambda: self._start(write)

    def acknowledge(self, write: Write) -> None:
        """Note that the write was answered, and offer what it made to the others."""
        write.outcome = Outcome.ACKNOWLEDGED
        self.operations[write.kind] += CALLS[write.kind]
        if self.operations.total() >= self._awaited:
            self._is_awaited_number_done.set()
        if write.kind is Kind.START:
            self._started.append(write.process_id)
        if write.kind in {Kind.START, Kind.SAVE}:
            self._stored.append(write.process_id)
        if write.kind is Kind.LOG_STEP:
            self._logged.append((write.process_id, write.token))

    async def _carry_out(self, write: Write, run: Callable[[], Awaitable[None]], *, is_redelivered: bool) -> None:
        while True:
            try:
                await run()
            except _REFUSALS:
                # Also where it was run before and lost its connection: that run has ended with the server, and where
                # it had been committed, this one would have found it.
                write.outcome = Outcome.REFUSED
                return
            except DBAPIError as error:
                if not _is_loss_of_connection(error):
                    raise
                self.interruptions += 1
                await self._reach()
                if not is_redelivered:
                    return
            else:
                self.acknowledge(write)
                return

    async def _reach(self) -> None:
        """Return once the server can be reached."""
        async with asyncio.timeout(_REACHABLE_AGAIN):
            while True:
                try:
                    async with self._engine.connect():
                        return
                except OperationalError:
                    await asyncio.sleep(0.01)

    async def in_transaction(self, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        """Run what a worker does on a connection, and commit it."""
        async with self._engine.begin() as connection:
            await work(connection)

    async def _start(self, write: Write) -> None:
        async def work(connection: AsyncConnection) -> None:
            process = _new_process(self.ledger.domain, write)
            with suppress(ProcessAlreadyExistsError):  # by this very write, when it was run before
                await self._repository.save(process, connection)
            await self._repository.log_step(self.ledger.domain, process.process_id, step(write.token), connection)

        await self.in_transaction(work)

    async def _handle_reply(self, write: Write) -> None:
        async def work(connection: AsyncConnection) -> None:
            process = await self._read(write, connection)
            if str(write.token) in _moves(process):
                return  # by this very write, when it was run before
            waiting = UUID(str(process.state["waiting"]))
            key = process.domain, process.process_id
            await self._repository.update_step_reply(*key, waiting, answer_to(waiting, write), connection)
            _move(process, write)
            process.state["waiting"] = str(write.token)
            await self._repository.update(process, connection)
            await self._repository.log_step(*key, step(write.token), connection)

        await self.in_transaction(work)

    async def _save(self, write: Write) -> None:
        with suppress(ProcessAlreadyExistsError):  # by this very write, when it was run before
            await self._repository.save(_new_process(self.ledger.domain, write))

    async def _update(self, write: Write) -> None:
        process = await self._read(write, None)
        if str(write.token) in _moves(process):
            return  # by this very write, when it was run before
        _move(process, write)
        await self._repository.update(process)

    async def _take_step(self, write: Write, message: list[UUID]) -> None:
        """Handle a message twice, as consumers do: read, decide, and make the same command each time.

        Args:
            write: What is written.
            message: Which command it answers; the first handler fills it in.
        """
        for _ in range(2):
            process = await self._read(write, None)
            if not message:
                message.append(UUID(str(process.state["waiting"])))
            _move(process, write)
            process.state["waiting"] = str(write.token)
            await self._repository.advance(process, reply=answer_to(message[0], write), sent=step(write.token))

    async def _retry(self, write: Write) -> None:
        process = await self._read(write, None)
        if str(write.token) in _moves(process):
            return  # by this very write, when it was run before
        _move(process, write)
        async with self._engine.connect() as connection:
            await self._repository.update(process, connection)
            await connection.rollback()
        await asyncio.sleep(0)  # others may write now
        await self._repository.update(process)

    async def _lock(self, write: Write) -> None:
        async def work(connection: AsyncConnection) -> None:
            process = await self._repository.get_by_id(
                self.ledger.domain, write.process_id, connection, for_update=True
            )
            if process is None:
                raise ProcessNotFoundError(self.ledger.domain, write.process_id)
            if str(write.token) not in _moves(process):
                _move(process, write)
                await self._repository.advance(process, connection)

        await self.in_transaction(work)

    async def _claim(self, write: Write) -> None:
        if str(write.token) in _moves(await self._read(write, None)):
            return  # by this very write, when it was run before

        async def work(connection: AsyncConnection) -> None:
            claimed = await self._repository.claim(self.ledger.domain, [ProcessStatus.PENDING], connection, limit=1)
            if not claimed:
                raise ProcessNotFoundError(self.ledger.domain, write.process_id)
            write.process_id = claimed[0].process_id
            _move(claimed[0], write)
            await self._repository.advance(claimed[0], connection)

        await self.in_transaction(work)

    async def _log_step(self, write: Write) -> None:
        await self._repository.log_step(self.ledger.domain, write.process_id, step(write.token))

    async def _record_reply(self, write: Write, command_id: UUID) -> None:
        domain, process_id = self.ledger.domain, write.process_id
        await self._repository.update_step_reply(domain, process_id, command_id, answer_to(command_id, write))

    async def _read(self, write: Write, connection: AsyncConnection | None) -> ProcessMetadata:
        process = await self._repository.get_by_id(self.ledger.domain, write.process_id, connection)
        if process is None:
            raise ProcessNotFoundError(self.ledger.domain, write.process_id)
        return process


def _new_process(domain: str, write: Write) -> ProcessMetadata:
    return ProcessMetadata(
        domain=domain,
        process_id=write.process_id,
        process_type="moved",
        current_step=str(write.token),
        state={"moves": [str(write.token)], "waiting": str(write.token)},
    )


def answer_to(command_id: UUID, write: Write) -> ProcessAuditEntry:
    """The reply that the write records, to this command."""
    return reply(write.token).model_copy(update={"command_id": command_id})


def _moves(process: ProcessMetadata) -> list[object]:
    moves = process.state["moves"]
    assert isinstance(moves, list)
    return list(moves)


def _move(process: ProcessMetadata, write: Write) -> None:
    moves = process.state["moves"]
    assert isinstance(moves, list)
    moves.append(str(write.token))
    process.current_step = str(write.token)


def _is_loss_of_connection(error: DBAPIError) -> bool:
    # If no connection was made, none is invalidated, and the server has usually sent nothing.
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or (
        isinstance(error, OperationalError) and (sqlstate is None or sqlstate.startswith(("08", "57P")))
    )
