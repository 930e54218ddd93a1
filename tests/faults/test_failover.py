"""The primary dies and its standby takes over: with synchronous replication nothing is lost.

With asynchronous replication, what the standby had not received is lost, and the library notices what can be noticed.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from random import Random
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessNotFoundError,
    ReplyConflictError,
    ReplyOutcome,
    StepNotFoundError,
    StepReply,
    run_in_transaction,
)
from commandbus_process.postgres._transaction import psycopg_connection
from tests.faults import failover
from tests.faults.ledger import Kind, Outcome, verify
from tests.faults.load import Load
from tests.faults.replicas import Replicas, host
from tests.support.databases import async_url
from tests.support.items import new_process
from tests.support.operations import command

Repository = PostgresProcessRepository[JsonObject]

# The long version is a part of `make chaos`.
SHORT = failover.Goal(failovers=1, operations=300, operations_between=200, limit=60)


@pytest.fixture
async def application(pair: Replicas) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(pair.application_url), pool_pre_ping=True)
    yield engine
    await engine.dispose()


async def test_with_synchronous_replication_what_was_acknowledged_outlives_the_primary(pair: Replicas) -> None:
    result = await failover.run(pair, 2, SHORT, print)
    assert result.verdict.faults == 0, str(result)
    assert result.failovers >= SHORT.failovers
    assert result.load.operations.total() >= SHORT.operations
    assert result.load.interruptions >= SHORT.failovers  # it met somebody at work
    assert len(result.load.standstills) >= failover.WORKERS - 1  # one of them may have begun with the failover


async def write_what_will_be_lost(pair: Replicas, load: Load) -> int:
    """Write in every way, and let the standby have none of it. Everything is acknowledged."""
    pair.cut()
    random = Random(3)  # noqa: S311 - to be the same again, not to be secret
    number = 0
    for kind in Kind:
        for _ in range(3):
            write, run = load.prepare(kind, random)
            try:
                await run()
            except ReplyConflictError:  # the command that was chosen has its reply
                write.outcome = Outcome.REFUSED
            else:
                load.acknowledge(write)
                number += 1
    return number


async def test_with_asynchronous_replication_what_the_standby_had_not_received_is_lost(pair: Replicas) -> None:
    """Exactly that, and whole: no step without its process, no reply without its step."""
    engine = create_async_engine(async_url(pair.application_url), pool_pre_ping=True)
    load = Load(engine)
    for kind in Kind:
        write, run = load.prepare(kind, Random(1))  # noqa: S311 - as above
        await run()
        load.acknowledge(write)
    await asyncio.to_thread(pair.catch_up)
    lost = await write_what_will_be_lost(pair, load)
    assert verify(pair.primary.url, load.ledger).faults == 0
    await asyncio.to_thread(pair.fail_over)
    await engine.dispose()
    verdict = verify(pair.primary.url, load.ledger)
    assert (verdict.lost, verdict.faults) == (lost, lost)
    assert load.ledger.count(Outcome.ACKNOWLEDGED) > lost


async def test_what_was_lost_is_noticed_or_handled_anew(pair: Replicas, application: AsyncEngine) -> None:
    repository = Repository(application)
    process, first = new_process(), command()
    key = process.domain, process.process_id
    await repository.save(process, sent=first)
    before = process.model_copy(deep=True)
    await asyncio.to_thread(pair.catch_up)
    pair.cut()
    # Lost: the reply to the first command, with the second one that it causes; and a process.
    reply, second = StepReply(first.command_id, ReplyOutcome.SUCCESS), command()
    assert await repository.advance(process, reply=reply, sent=second)
    started = new_process()
    await repository.save(started)
    await asyncio.to_thread(pair.fail_over)

    # The service answers the second command: nobody knows it.
    answer = StepReply(second.command_id, ReplyOutcome.SUCCESS)
    with pytest.raises(StepNotFoundError) as unknown:
        await repository.update_step_reply(*key, second.command_id, answer)
    assert unknown.value.retryable
    # An object in memory is newer than its row.
    for write in (repository.update, repository.advance):
        with pytest.raises(ConcurrentUpdateError) as caught:
            await write(process)
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 1)
    with pytest.raises(ProcessNotFoundError):
        await repository.update(started)
    # The row comes to the same version by another write. It is another row.
    other = await repository.get_by_id(*key)
    assert other is not None
    assert other == before
    other.current_step = "by somebody else"
    await repository.update(other)
    for write in (repository.update, repository.advance):
        with pytest.raises(ConcurrentUpdateError) as caught:
            await write(process)
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 2)
    # The message that was handled is delivered again. It is handled anew: once, not never and not twice.
    for is_new in (True, False):
        found = await repository.get_by_id(*key)
        assert found is not None
        assert await repository.advance(found, reply=reply, sent=second) is is_new
    trail = await repository.get_audit_trail(*key)
    assert [(entry.command_id, entry.reply_outcome) for entry in trail] == [
        (first.command_id, ReplyOutcome.SUCCESS),
        (second.command_id, None),
    ]
    assert await repository.update_step_reply(*key, second.command_id, answer)
    await repository.save(started)


async def test_a_commit_waits_for_the_standby_and_who_gives_up_does_not_know(pair: Replicas) -> None:
    """`statement_timeout` does not end the wait. A cancellation does: then the write is on the primary only."""
    pair.set_synchronous(synchronous=True)
    process = new_process()
    engine = create_async_engine(
        async_url(pair.primary.application_url),
        connect_args={"options": "-crole=commandbus_application -cstatement_timeout=100"},
    )
    await Repository(engine).save(process)
    pair.standby.kill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await Repository(engine).update(process)
    await engine.dispose()
    assert process.version == 1
    with psycopg.connect(pair.primary.url) as connection:
        row = connection.execute(
            "SELECT version FROM commandbus.process WHERE process_id = %s", [process.process_id]
        ).fetchone()
    assert row == (2,)


# How several hosts are written, as SQLAlchemy and libpq take them.
FORMS = {
    "hosts and ports": "host={a},{b}&port=5432,5432",
    "a host and its port, twice": "host={a}:5432&host={b}:5432",
    "hosts only": "host={a},{b}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_several_hosts_lead_to_the_one_that_takes_writes(pair: Replicas, form: str) -> None:
    for first, second in ((pair.primary, pair.standby), (pair.standby, pair.primary)):
        hosts = form.format(a=host(first), b=host(second))
        url = f"postgresql+psycopg://postgres@/postgres?{hosts}&target_session_attrs=read-write"
        engine = create_async_engine(url)
        process = new_process()
        await Repository(engine).save(process)
        await run_in_transaction(engine, partial(Repository(engine).update, process))
        await engine.dispose()


async def test_hosts_with_ports_in_one_list_are_not_understood(pair: Replicas) -> None:
    """`host=a:5432,b:5432` is taken as one odd host name."""
    hosts = f"host={host(pair.primary)}:5432,{host(pair.standby)}:5432"
    engine = create_async_engine(f"postgresql+psycopg://postgres@/postgres?{hosts}")
    with pytest.raises(OperationalError):
        await Repository(engine).get_by_id("orders", uuid4())
    await engine.dispose()


async def test_reads_can_prefer_the_standby(pair: Replicas) -> None:
    url = make_url(async_url(pair.hosts("standby")))
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        assert connection.sync_connection is not None
        pgconn = psycopg_connection(connection.sync_connection).pgconn
        assert pgconn.parameter_status(b"in_hot_standby") == b"on"
    await engine.dispose()
