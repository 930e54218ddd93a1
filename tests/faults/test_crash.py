"""The server is killed under load: nothing is lost or torn, and if something were, it would be noticed."""

from dataclasses import dataclass
from random import Random

import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.faults import chaos
from tests.faults.ledger import Kind, Outcome, Verdict, Write, verify
from tests.faults.load import Load
from tests.faults.servers import KillableServer
from tests.support.databases import async_url

# The long version is `make chaos`.
SHORT = chaos.Goal(seconds=0, kills=4, operations=1_000, operations_between_kills=200, limit=60)


async def test_what_was_acknowledged_outlives_the_server(killable: KillableServer) -> None:
    result = await chaos.run(killable, 1, SHORT, print)
    assert result.verdict.faults == 0, str(result)
    assert result.kills >= SHORT.kills
    assert result.load.operations.total() >= SHORT.operations
    assert set(result.load.operations) == set(Kind)
    assert result.load.interruptions >= SHORT.kills  # each met somebody at work


async def test_a_server_that_acknowledges_what_it_has_not_written_is_noticed(killable: KillableServer) -> None:
    killable.stop()
    killable.start(synchronous_commit="off", wal_writer_delay="10s")
    try:
        engine = create_async_engine(async_url(killable.application_url))
        load = Load(engine)
        for kind in Kind:
            await carry_out(load, kind)
        assert verify(killable.url, load.ledger).faults == 0
        killable.kill()
        await engine.dispose()
    finally:
        killable.stop()
        killable.start()
    assert verify(killable.url, load.ledger).lost > 0


AUDIT, PROCESS = "commandbus.process_audit", "commandbus.process"


@dataclass(frozen=True)
class Damage:
    """Damage to an acknowledged write, and what the verifier must report."""

    kind: Kind
    script: str
    verdict: Verdict
    outcome: Outcome = Outcome.ACKNOWLEDGED


DAMAGES = {
    "a reply is gone": Damage(
        Kind.RECORD_REPLY,
        f"UPDATE {AUDIT} SET reply_outcome = NULL, reply_data = NULL, received_at = NULL "
        "WHERE reply_data ->> 'token' = %(token)s",
        Verdict(lost=1),
    ),
    "a move is gone": Damage(
        Kind.UPDATE,
        f"UPDATE {PROCESS} SET state = jsonb_set(state, '{{moves}}', (state -> 'moves') - %(token)s::text) "
        "WHERE process_id = %(process_id)s",
        Verdict(lost=1, misnumbered=1),
    ),
    "a process is gone": Damage(
        Kind.SAVE,
        f"UPDATE {PROCESS} SET domain = 'elsewhere ' || domain WHERE process_id = %(process_id)s",
        Verdict(lost=1),
    ),
    "a transaction is there without its step": Damage(
        Kind.HANDLE_REPLY,
        f"DELETE FROM {AUDIT} WHERE command_id = %(token)s::uuid",
        Verdict(lost=1, torn=1),
    ),
    "a transaction is there without its reply": Damage(
        Kind.HANDLE_REPLY,
        f"UPDATE {AUDIT} SET reply_outcome = NULL, reply_data = NULL, received_at = NULL "
        "WHERE reply_data ->> 'token' = %(token)s",
        Verdict(lost=1, torn=1),
    ),
    "a transaction is there without its move": Damage(
        Kind.HANDLE_REPLY,
        f"UPDATE {PROCESS} SET state = jsonb_set(state, '{{moves}}', (state -> 'moves') - %(token)s::text) "
        "WHERE process_id = %(process_id)s",
        Verdict(lost=1, torn=1, misnumbered=1),
    ),
    "a transaction of unknown outcome is there in part": Damage(
        Kind.HANDLE_REPLY,
        f"DELETE FROM {AUDIT} WHERE command_id = %(token)s::uuid",
        Verdict(torn=1, kept=1),
        Outcome.UNKNOWN,
    ),
    "a write was refused and is there": Damage(
        Kind.START,
        "SELECT",
        Verdict(unwanted=1),
        Outcome.REFUSED,
    ),
    "a move was made twice": Damage(
        Kind.UPDATE,
        f"UPDATE {PROCESS} SET state = jsonb_set(state, '{{moves}}', (state -> 'moves') || to_jsonb(%(token)s::text)), "
        "current_step = %(token)s, version = version + 1 WHERE process_id = %(process_id)s",
        Verdict(repeated=1),
    ),
    "a command is another": Damage(
        Kind.LOG_STEP,
        f"UPDATE {AUDIT} SET command_data = '{{}}' WHERE command_id = %(token)s::uuid",
        Verdict(changed=1),
    ),
    "a reply is another": Damage(
        Kind.RECORD_REPLY,
        # The outcome that was written depends on the random token, so a fixed one would change nothing now and then.
        f"UPDATE {AUDIT} SET reply_outcome = CASE reply_outcome WHEN 'CANCELED' THEN 'FAILED' ELSE 'CANCELED' END "
        "WHERE reply_data ->> 'token' = %(token)s",
        Verdict(changed=1),
    ),
    "an update left the version": Damage(
        Kind.UPDATE,
        f"UPDATE {PROCESS} SET version = version - 1 WHERE process_id = %(process_id)s",
        Verdict(misnumbered=1),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damage_is_noticed(damage: Damage, killable: KillableServer) -> None:
    engine = create_async_engine(async_url(killable.application_url))
    load = Load(engine)
    # The last one, so that nobody replies to the command that it sends.
    in_order = sorted(Kind, key=lambda kind: kind is Kind.HANDLE_REPLY)
    writes = {kind: await carry_out(load, kind) for kind in in_order}
    await engine.dispose()
    assert verify(killable.url, load.ledger) == Verdict()
    write = writes[damage.kind]
    write.outcome = damage.outcome
    values = {"token": str(write.token), "process_id": write.process_id}
    with psycopg.connect(killable.url) as administrator:
        administrator.execute(damage.script.encode(), values)
    assert verify(killable.url, load.ledger) == damage.verdict


async def test_what_nobody_wrote_is_noticed(killable: KillableServer) -> None:
    engine = create_async_engine(async_url(killable.application_url))
    load = Load(engine)
    write = await carry_out(load, Kind.SAVE)
    await engine.dispose()
    del load.ledger.writes[write.token]
    assert verify(killable.url, load.ledger) == Verdict(unwanted=1)


async def carry_out(load: Load, kind: Kind) -> Write:
    write, run = load.prepare(kind, Random(1))  # noqa: S311 - to be the same again, not to be secret
    assert write.kind is kind
    await run()
    load.acknowledge(write)
    return write
