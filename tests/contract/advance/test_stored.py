"""A step of a process manager is stored whole: the reply, the commands that go out, and the process."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from commandbus_process import (
    JsonObject,
    ReplyOutcome,
)
from tests.support.advancing import NOON, SHAPES, Waiting, answered, new_command, reply_to
from tests.support.items import DOMAIN, new_process


@pytest.mark.parametrize(("with_reply", "names"), SHAPES.values(), ids=SHAPES)
async def test_a_step_is_stored_whole(waiting: Waiting, *, with_reply: bool, names: list[str]) -> None:
    reply = reply_to(waiting.asked) if with_reply else None
    sent = [new_command(name) for name in names]
    process = waiting.next(created_at=NOON)  # which is never written
    [before] = await waiting.select("SELECT *, clock_timestamp() AS clock FROM commandbus.process")
    assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    [stored] = await waiting.select("SELECT *, now() AS now, clock_timestamp() AS clock FROM commandbus.process")
    now, clock = stored.pop("now"), stored.pop("clock")
    if waiting.conn is None:
        assert before["clock"] < stored["updated_at"] < clock
    else:
        assert stored["updated_at"] == now
    assert stored == {
        "domain": DOMAIN,
        "process_id": waiting.process.process_id,
        "process_type": "order",
        "status": "COMPENSATING",
        "current_step": "charge",
        "state": {"total": 13, "text": "é\n"},
        "error_code": "DECLINED",
        "error_message": "the card was declined",
        "created_at": waiting.process.created_at,
        "updated_at": process.updated_at,
        "completed_at": NOON + timedelta(hours=1),
        "version": 3,
        "business_key": None,
        "deadline": None,
        "state_version": None,
    }
    expected = waiting.next(created_at=NOON, version=3, updated_at=stored["updated_at"])
    assert process == expected

    replied = (
        {"reply_outcome": "SUCCESS", "reply_data": {"reserved": 3}, "received_at": NOON + timedelta(minutes=5)}
        if with_reply
        else {"reply_outcome": None, "reply_data": None, "received_at": None}
    )
    unreplied = {"reply_outcome": None, "reply_data": None, "received_at": None}
    steps = await waiting.select("SELECT * FROM commandbus.process_audit ORDER BY id")
    assert [{**step, "id": None} for step in steps[1:]] == [
        {
            "id": None,
            "domain": DOMAIN,
            "process_id": waiting.process.process_id,
            "step_name": entry.step_name,
            "command_id": entry.command_id,
            "command_type": "Do",
            "command_data": {"amount": 42.5},
            "sent_at": NOON,
            "compensates": None,
            **columns,
        }
        for entry, columns in [(waiting.asked, replied), *((entry, unreplied) for entry in sent)]
    ]
    asked = waiting.asked if reply is None else answered(waiting.asked, reply)
    assert await waiting.trail() == [waiting.done, asked, *sent]


async def test_what_is_sent_is_stored_as_the_single_methods_store_it(committed: Waiting) -> None:
    """Several entries go to the server in another form than one entry, and anything could change on the way."""
    odd: JsonObject = {
        "n": [1e-7, 10**30, -0.5, 1.0, True, None, {}, []],
        'k"\\': "é\n\t\x7f\u2028😀 \\u0041 '",
        "": "$1 %s :x",
    }
    sent = [
        new_command("plain", command_data=odd),
        new_command('"quoted" \\ {n} %s :x é😀', command_type="x" * 255),
        new_command("no data", command_data=None),
        new_command("empty", command_data={}),
        new_command("first moment", sent_at=datetime(1, 1, 1, tzinfo=UTC)),
        new_command("last moment", sent_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        new_command("a microsecond", sent_at=NOON + timedelta(microseconds=1)),
        *(
            new_command("replied", reply_outcome=outcome, reply_data=data, received_at=NOON)
            for outcome in ReplyOutcome
            for data in (odd, {}, None)
        ),
    ]
    single = new_process()
    await committed.repository.save(single)
    for entry in sent:
        await committed.repository.log_step(DOMAIN, single.process_id, entry)
    asked = new_command("asked")
    await committed.repository.log_step(DOMAIN, single.process_id, asked)
    reply = reply_to(asked, reply_data=odd)
    await committed.repository.update_step_reply(DOMAIN, single.process_id, asked.command_id, reply)

    await committed.repository.advance(
        committed.next(), reply=reply_to(committed.asked, reply_data=odd), sent=[*sent, new_command("asked")]
    )

    async def columns(process_id: UUID, names: str) -> list[list[Any]]:
        rows = await committed.select(
            f"SELECT {names} FROM commandbus.process_audit WHERE process_id = '{process_id}' ORDER BY id"
        )
        return [list(row.values()) for row in rows]

    names = "step_name, command_type, command_data::text, sent_at::text, reply_outcome, reply_data::text, received_at"
    by_single_methods = await columns(single.process_id, names)
    at_once = await columns(committed.process.process_id, names)
    assert at_once[2:-1] == by_single_methods[:-1]  # before them are the two that were there already
    assert at_once[1][4:] == by_single_methods[-1][4:]
