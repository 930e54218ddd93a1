"""Two transactions at once, of which one takes a step."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessMetadata,
    ProcessRepositoryError,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
)
from tests.support.advancing import LATER, NOON, RACERS, Waiting, answered, new_command, reply_to
from tests.support.databases import execute
from tests.support.items import DOMAIN, new_process
from tests.support.retrying import assert_can_be_run_again
from tests.support.waiting import is_waiting_for_a_lock


@pytest.mark.parametrize("on_connections", [False, True], ids=["without a connection", "callers' connections"])
async def test_of_four_steps_from_one_version_at_once_exactly_one_is_taken(
    committed: Waiting, isolation_level: str, *, on_connections: bool
) -> None:
    reply = reply_to(committed.asked)
    steps = [
        (committed.next(current_step=f"racer {number}"), [new_command(f"of {number}") for _ in range(1 + number % 3)])
        for number in range(RACERS)
    ]

    async def take(process: ProcessMetadata, sent: list[ProcessAuditEntry]) -> None:
        if not on_connections:
            await committed.repository.advance(process, reply=reply, sent=sent)
            return
        async with committed.engine.begin() as conn:
            await committed.repository.advance(process, conn, reply=reply, sent=sent)

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(take(*step) for step in steps), return_exceptions=True)
    [winner] = [number for number, result in enumerate(results) if result is None]
    process, sent = steps[winner]
    assert await committed.repository.get_by_id(*committed.key) == process
    assert process.version == 3
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]
    for result, (loser, _) in zip(results, steps, strict=True):
        if result is not None:
            assert isinstance(result, ConcurrentUpdateError)
            assert result.expected_version == loser.version == 2
            if isolation_level == "READ COMMITTED" or not on_connections:
                assert result.actual_version == 3


Call = Callable[[AsyncConnection], Awaitable[object]]


@dataclass
class Meeting:
    """Two transactions, of which the second runs into what the first has not committed yet."""

    waiting: Waiting
    administrator: AsyncEngine

    async def of(
        self,
        first: Call,
        second: Callable[[AsyncConnection | None], Awaitable[object]],
        *,
        on_connection: bool = False,
        commit: bool = True,
        then: Call | None = None,
    ) -> object:
        """Return what became of the second: `None`, or an error. `then` is what the first does once it is waited for.

        On a connection, looks whether its transaction is alive where it has to be, and ends it.
        """
        async with asyncio.timeout(60), AsyncExitStack() as connections:
            holder = await connections.enter_async_context(self.waiting.engine.connect())
            conn = None
            if on_connection:
                conn = await connections.enter_async_context(self.waiting.engine.connect())
            await first(holder)
            task = asyncio.ensure_future(second(conn))
            await is_waiting_for_a_lock(self.administrator)
            if then is not None:
                await then(holder)
            await (holder.commit() if commit else holder.rollback())
            [result] = await asyncio.gather(task, return_exceptions=True)
            if conn is not None:
                await self._end(conn, result)
        return result

    async def _end(self, conn: AsyncConnection, result: object) -> None:
        if isinstance(result, ConcurrentUpdateError) and result.actual_version is None:
            assert result.retryable
            assert isinstance(result.__cause__, DBAPIError)
            await conn.rollback()  # it has to be, whether it was aborted, or only the savepoint before several commands
        else:
            assert await self.waiting.repository.get_by_id(*self.waiting.key, conn) is not None
            await conn.commit()


@pytest.fixture
def meeting(committed: Waiting, administrator: AsyncEngine) -> Meeting:
    return Meeting(committed, administrator)


CONNECTED = pytest.mark.parametrize("on_connection", [False, True], ids=["without a connection", "caller's connection"])


@CONNECTED
@pytest.mark.parametrize(("with_reply", "count"), [(False, 0), (True, 0), (False, 1), (True, 2)])
async def test_the_second_of_two_steps_from_one_version(
    committed: Waiting, meeting: Meeting, isolation_level: str, count: int, *, with_reply: bool, on_connection: bool
) -> None:
    """They have nothing in common but the process."""
    winner, loser, won = committed.next(), committed.next(current_step="loser"), new_command("of the winner")
    reply = reply_to(committed.asked) if with_reply else None
    lost = [new_command("of the loser") for _ in range(count)]
    result = await meeting.of(
        lambda conn: committed.repository.advance(winner, conn, sent=won),
        lambda conn: committed.repository.advance(loser, conn, reply=reply, sent=lost),
        on_connection=on_connection,
    )
    assert isinstance(result, ConcurrentUpdateError)
    seen = isolation_level == "READ COMMITTED" or not on_connection
    assert (result.expected_version, result.actual_version) == (2, 3 if seen else None)
    assert loser == committed.next(current_step="loser")
    assert await committed.repository.get_by_id(*committed.key) == winner
    assert await committed.trail() == [committed.done, committed.asked, won]


@CONNECTED
async def test_the_same_step_delivered_twice_at_once(
    committed: Waiting, meeting: Meeting, isolation_level: str, *, on_connection: bool
) -> None:
    first, second = committed.next(), committed.next()
    reply, sent = reply_to(committed.asked), [new_command(), new_command("ship")]
    result = await meeting.of(
        lambda conn: committed.repository.advance(first, conn, reply=reply, sent=sent),
        lambda conn: committed.repository.advance(second, conn, reply=reply, sent=sent),
        on_connection=on_connection,
    )
    if isolation_level == "READ COMMITTED" or not on_connection:
        assert result is False
        assert second == first
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert result.actual_version is None
    assert await committed.repository.get_by_id(*committed.key) == first
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]


@pytest.mark.parametrize(("count", "on_connection"), [(1, False), (2, True)])
async def test_a_step_that_waited_for_one_that_is_rolled_back(
    committed: Waiting, meeting: Meeting, count: int, *, on_connection: bool
) -> None:
    process, reply = committed.next(), reply_to(committed.asked)
    sent = [new_command(f"step {number}") for number in range(count)]
    undone = committed.next(current_step="undone")
    result = await meeting.of(
        lambda conn: committed.repository.advance(undone, conn, reply=reply, sent=sent),
        lambda conn: committed.repository.advance(process, conn, reply=reply, sent=sent),
        on_connection=on_connection,
        commit=False,
    )
    assert result is True
    assert await committed.repository.get_by_id(*committed.key) == process
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]


@CONNECTED
@pytest.mark.parametrize("count", [1, 2])
async def test_a_command_that_another_transaction_is_logging_at_this_moment(
    committed: Waiting, meeting: Meeting, isolation_level: str, count: int, *, on_connection: bool
) -> None:
    """Of several, it is the last: those before it are written already when the statement meets it."""
    process = committed.next()
    sent = [new_command(f"step {number}") for number in range(count)]
    first = sent[-1].model_copy(update={"sent_at": NOON - LATER})
    before = await committed.everything()
    result = await meeting.of(
        lambda conn: committed.repository.log_step(*committed.key, first, conn),
        lambda conn: committed.repository.advance(process, conn, reply=reply_to(committed.asked), sent=iter(sent)),
        on_connection=on_connection,
    )
    if isolation_level == "READ COMMITTED" or not on_connection:
        assert isinstance(result, StepAlreadyLoggedError)
        assert (result.recorded, result.given) == (first, sent[-1])
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert (result.expected_version, result.actual_version) == (2, None)
    assert process == committed.next()
    assert await committed.trail() == [first, committed.done, committed.asked]
    assert [row for row in await committed.everything() if str(first.command_id) not in row["each"]] == before


@pytest.mark.parametrize(("count", "on_connection"), [(1, False), (2, True)])
async def test_a_command_that_another_transaction_was_logging_and_did_not(
    committed: Waiting, meeting: Meeting, count: int, *, on_connection: bool
) -> None:
    process, reply = committed.next(), reply_to(committed.asked)
    sent = [new_command(f"step {number}") for number in range(count)]
    result = await meeting.of(
        lambda conn: committed.repository.log_step(*committed.key, sent[-1], conn),
        lambda conn: committed.repository.advance(process, conn, reply=reply, sent=iter(sent)),
        on_connection=on_connection,
        commit=False,
    )
    assert result is True
    assert await committed.repository.get_by_id(*committed.key) == process
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]


@CONNECTED
@pytest.mark.parametrize("same", [True, False], ids=["the same reply", "another reply"])
async def test_a_reply_that_another_transaction_is_recording_at_this_moment(
    committed: Waiting, meeting: Meeting, isolation_level: str, *, same: bool, on_connection: bool
) -> None:
    """That does not change the process, so its version is as it was. Only the step shows it."""
    process, recorded = committed.next(), reply_to(committed.asked)
    given = recorded if same else reply_to(committed.asked, reply_outcome=ReplyOutcome.FAILED)
    result = await meeting.of(
        lambda conn: committed.repository.update_step_reply(*committed.key, recorded.command_id, recorded, conn),
        lambda conn: committed.repository.advance(
            process, conn, reply=given, sent=[new_command(), new_command("ship")]
        ),
        on_connection=on_connection,
    )
    if isolation_level == "READ COMMITTED" or not on_connection:
        assert isinstance(result, ReplyConflictError)
        assert (result.recorded, result.given) == (answered(committed.asked, recorded), given)
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert (result.expected_version, result.actual_version) == (2, None)
    assert process == committed.next()
    assert await committed.repository.get_by_id(*committed.key) == committed.process
    assert await committed.trail() == [committed.done, answered(committed.asked, recorded)]


async def test_a_reply_that_another_transaction_was_recording_and_did_not(committed: Waiting, meeting: Meeting) -> None:
    process, reply, sent = committed.next(), reply_to(committed.asked), new_command()
    undone = reply_to(committed.asked, reply_outcome=ReplyOutcome.FAILED)
    result = await meeting.of(
        lambda conn: committed.repository.update_step_reply(*committed.key, undone.command_id, undone, conn),
        lambda conn: committed.repository.advance(process, conn, reply=reply, sent=sent),
        commit=False,
    )
    assert result is True
    assert await committed.repository.get_by_id(*committed.key) == process
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), sent]


@pytest.mark.parametrize("count", [0, 1])
async def test_it_locks_in_the_order_of_the_single_methods(
    committed: Waiting, meeting: Meeting, isolation_level: str, count: int
) -> None:
    """Another worker takes the step with them: it has recorded the reply, and updates the process last."""
    winner, loser, reply = committed.next(), committed.next(current_step="loser"), reply_to(committed.asked)
    result = await meeting.of(
        lambda conn: committed.repository.update_step_reply(*committed.key, reply.command_id, reply, conn),
        lambda conn: committed.repository.advance(loser, conn, reply=reply, sent=[new_command() for _ in range(count)]),
        on_connection=True,  # without one, it would get over a deadlock
        then=lambda conn: committed.repository.update(winner, conn),
    )
    if isolation_level == "READ COMMITTED" and count == 0:
        assert result is False  # the reply is all that there is to recognise the step by
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert result.actual_version == (3 if isolation_level == "READ COMMITTED" else None)
    assert await committed.repository.get_by_id(*committed.key) == winner
    assert await committed.trail() == [committed.done, answered(committed.asked, reply)]


async def test_steps_can_be_logged_while_another_one_is_being_taken(committed: Waiting) -> None:
    logged = new_command("beside")
    async with committed.engine.connect() as conn:
        await committed.repository.advance(committed.next(), conn, reply=reply_to(committed.asked), sent=new_command())
        async with asyncio.timeout(30):
            await committed.repository.log_step(*committed.key, logged)
        await conn.rollback()  # under SERIALIZABLE, a commit could fail
    assert await committed.trail() == [committed.done, committed.asked, logged]


@pytest.mark.parametrize(("what", "count"), [("version", 1), ("reply", 2), ("command", 1), ("command", 2)])
async def test_what_was_committed_since_the_callers_transaction_began(
    committed: Waiting, isolation_level: str, what: str, count: int
) -> None:
    repository, reply = committed.repository, reply_to(committed.asked)
    sent = [new_command(f"step {number}") for number in range(count)]
    process, given = committed.next(), committed.next()
    async with committed.engine.connect() as conn:
        await repository.get_by_id(*committed.key, conn)  # the snapshot of the higher levels is taken here
        if what == "version":
            await repository.update(committed.process)
        elif what == "reply":
            await repository.update_step_reply(*committed.key, reply.command_id, reply)
        else:
            await repository.log_step(*committed.key, sent[-1])
        before = await committed.everything()
        with pytest.raises(ProcessRepositoryError) as caught:
            await repository.advance(process, conn, reply=reply, sent=sent)
        if isolation_level == "READ COMMITTED":
            errors = {"version": ConcurrentUpdateError, "reply": ReplyConflictError, "command": StepAlreadyLoggedError}
            assert type(caught.value) is errors[what]
            assert await repository.get_by_id(*committed.key, conn) is not None  # the transaction is alive
        else:
            assert isinstance(caught.value, ConcurrentUpdateError)
            assert (caught.value.expected_version, caught.value.actual_version) == (2, None)
        await conn.rollback()
    assert process == given
    assert await committed.everything() == before


async def test_workers_that_take_steps_of_one_process_lose_none(committed: Waiting) -> None:
    """Each reads, decides on the next command from what it read, and advances: on its connection, and without one."""
    repository, rounds = committed.repository, 5

    async def work(worker: int) -> None:
        for number in range(rounds):
            sent = [new_command(f"{worker}.{number}.{each}") for each in range(1 + number % 2)]
            while True:
                try:
                    if worker % 2:
                        await take(sent, None)
                    else:
                        async with committed.engine.begin() as conn:
                            await take(sent, conn)
                except (ProcessRepositoryError, DBAPIError) as error:
                    assert_can_be_run_again(error)
                else:
                    break

    async def take(sent: list[ProcessAuditEntry], conn: AsyncConnection | None) -> None:
        found = await repository.get_by_id(*committed.key, conn)
        assert found is not None
        names = found.state.setdefault("names", [])
        assert isinstance(names, list)
        names.extend(entry.step_name for entry in sent)
        await repository.advance(found, conn, sent=sent)

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(worker) for worker in range(RACERS)))
    found = await repository.get_by_id(*committed.key)
    assert found is not None
    assert found.version == 2 + RACERS * rounds
    in_order = await committed.select("SELECT step_name FROM commandbus.process_audit ORDER BY id")
    assert [row["step_name"] for row in in_order[2:]] == found.state["names"]


@pytest.mark.parametrize("what", ["command", "reply"])
async def test_what_was_in_the_way_of_a_step_and_goes_before_it_is_looked_for(
    committed: Waiting, database_url: str, what: str
) -> None:
    remedy = {
        "command": "DELETE FROM commandbus.process_audit WHERE step_name = 'check'",
        "reply": "UPDATE commandbus.process_audit SET reply_outcome = NULL, reply_data = NULL, received_at = NULL",
    }[what]
    process, reply, sent = committed.next(), None, [new_command("in the way", command_id=committed.done.command_id)]
    if what == "reply":
        reply, sent = reply_to(committed.done, reply_outcome=ReplyOutcome.FAILED), [new_command()]
    seen: list[str] = []

    def clear_the_way(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)
        if len(seen) == 2:  # before what is in the way is looked for
            execute(database_url, remedy)

    # A transaction that has its snapshot already would still see the obstacle.
    own = PostgresProcessRepository(committed.engine.execution_options(isolation_level="READ COMMITTED"))
    event.listen(committed.engine.sync_engine, "before_cursor_execute", clear_the_way)
    await own.advance(process, reply=reply, sent=sent)
    event.remove(committed.engine.sync_engine, "before_cursor_execute", clear_the_way)
    assert seen[-1] == seen[0]
    assert process.version == 3
    assert await committed.repository.get_by_id(*committed.key) == process
    trail = {entry.command_id: entry for entry in await committed.trail()}
    if reply is not None:
        assert trail[reply.command_id] == answered(committed.done, reply)
    assert {entry.command_id: trail[entry.command_id] for entry in sent} == {entry.command_id: entry for entry in sent}


@pytest.mark.parametrize("count", [1, 2])
async def test_the_callers_savepoint_survives_a_lock_timeout(committed: Waiting, count: int) -> None:
    """As with `update`: rolled back to the savepoint, the caller's transaction goes on."""
    repository, kept = committed.repository, new_process()
    sent = [new_command(f"step {number}") for number in range(count)]
    async with committed.engine.connect() as holder, committed.engine.begin() as conn:
        await repository.get_by_id(*committed.key, holder, for_update=True)
        await conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
        await repository.save(kept, conn)
        with pytest.raises(ProcessLockedError):
            async with conn.begin_nested():
                await repository.advance(committed.next(), conn, sent=sent)
        await holder.rollback()
        async with conn.begin_nested():
            await repository.advance(committed.next(), conn, sent=sent)
    assert await repository.get_by_id(DOMAIN, kept.process_id) == kept
    assert await committed.trail() == [committed.done, committed.asked, *sent]
