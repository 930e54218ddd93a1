"""Bad input is refused with a clear error before any SQL; the tests have a server that nobody can reach."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StepReply,
)
from tests.support.items import DOMAIN, new_process

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

NAIVE = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - what is refused
Repository = PostgresProcessRepository


@pytest.fixture
async def unreachable() -> AsyncIterator[Repository]:
    """A repository that fails with something else than the expected error if it tries to connect."""
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    yield PostgresProcessRepository(engine)
    await engine.dispose()


def entry(**changes: Any) -> ProcessAuditEntry:
    fields: dict[str, Any] = {"step_name": "reserve", "command_id": uuid4(), "command_type": "T", **changes}
    return ProcessAuditEntry(**fields)


BAD_NAMES = ["", "x" * 256, "a\0b", "a\ud800b", 7, None]
BAD_FIELDS = [
    *(("domain", bad) for bad in BAD_NAMES),
    *(("process_type", bad) for bad in BAD_NAMES),
    *(("current_step", bad) for bad in BAD_NAMES if bad),
    ("error_code", "x" * 256),
    ("error_code", "\0"),
    ("error_message", "a\0b"),
    ("process_id", "not a uuid"),
    ("status", "PAUSED"),
    ("created_at", NAIVE),
    ("updated_at", NAIVE),
    ("completed_at", NAIVE),
    ("completed_at", "yesterday"),
    ("version", 0),
    ("version", 2**63),
    ("state", None),
    ("state", [1]),
    ("state", "text"),
    ("state", {"when": NOON}),
    ("state", {"total": float("nan")}),
    ("state", {1: "key"}),
    ("misspelt", 1),
]


@pytest.mark.parametrize(("field", "bad"), BAD_FIELDS, ids=str)
def test_a_process_refuses(field: str, bad: object) -> None:
    process = new_process()
    fields: dict[str, Any] = {**dict(process), field: bad}
    with pytest.raises(ValidationError, match=field):
        ProcessMetadata(**fields)
    with pytest.raises(ValueError, match=field):
        setattr(process, field, bad)
    assert process == new_process(process.process_id).model_copy(
        update={"created_at": process.created_at, "updated_at": process.updated_at}
    )


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("step_name", bad) for bad in BAD_NAMES),
        ("command_type", "x" * 256),
        ("command_id", "7"),
        ("command_data", [1]),
        ("command_data", {"when": NAIVE}),
        ("sent_at", NAIVE),
        ("reply_outcome", "PERHAPS"),
        ("reply_data", {"n": float("inf")}),
        ("received_at", NAIVE),
        ("misspelt", 1),
    ],
    ids=str,
)
def test_an_entry_refuses(field: str, bad: object) -> None:
    with pytest.raises(ValidationError, match=field):
        entry(**{field: bad})


def test_names_of_255_characters_are_accepted() -> None:
    name = "é" * 255
    process = ProcessMetadata[JsonObject](
        domain=name, process_id=uuid4(), process_type=name, state={}, current_step=name
    )
    assert (process.domain, process.current_step) == (name, name)


def test_defaults() -> None:
    before = datetime.now(UTC)
    process = ProcessMetadata[JsonObject](domain=DOMAIN, process_id=uuid4(), process_type="order", state={})
    assert process.status is ProcessStatus.PENDING
    assert before <= process.created_at <= process.updated_at <= datetime.now(UTC)
    assert (process.current_step, process.error_code, process.error_message) == (None, None, None)
    assert (process.completed_at, process.version) == (None, None)


def test_times_are_kept_in_utc() -> None:
    given = datetime.fromisoformat("2026-03-01T12:00:00+05:45")
    kept = entry(sent_at=given).sent_at
    assert (kept, kept.tzinfo) == (given, UTC)
    with pytest.raises(ValidationError, match="years 1 to 9999"):
        entry(sent_at=datetime.fromisoformat("9999-12-31T23:00:00-05:00"))


def test_the_terminal_statuses() -> None:
    terminal = {ProcessStatus.COMPLETED, ProcessStatus.COMPENSATED, ProcessStatus.FAILED, ProcessStatus.CANCELED}
    assert {status for status in ProcessStatus if status.is_terminal} == terminal


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NOT_JSON = {
    "NaN": float("nan"),
    "infinity": [float("inf")],
    "NUL": "a\0b",
    "NUL after a backslash": "\\\0",
    "NUL in a key": {"\0": 1},
    "lone surrogate": "\ud800",
    "lone surrogate in a key": {"\udfff": 1},
    "key that is no string": {"deep": {1: 2}},
    "datetime": datetime.now(UTC),
    "tuple": (1, 2),
    "set": {1},
    "bytes": b"x",
    "object": object(),
    "cycle": cyclic(),
    "too deep to be read": nested(200),
    "too deep to be written": nested(5000),
    "too many digits": 10**5000,
}


@pytest.mark.parametrize("bad", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_json_cannot_hold_put_in_place_into_a_state(unreachable: Repository, bad: Any) -> None:
    for write in (unreachable.save, unreachable.update):
        process = new_process()
        process.state["inner"] = bad
        with pytest.raises(InvalidInputError) as caught:
            await write(process)
        assert caught.value.field == "state"


@pytest.mark.parametrize("bad", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_json_cannot_hold_put_in_place_into_the_data_of_a_step(unreachable: Repository, bad: Any) -> None:
    for field in ("command_data", "reply_data"):
        given = entry(reply_outcome=ReplyOutcome.SUCCESS, command_data={}, reply_data={})
        getattr(given, field)["inner"] = bad
        with pytest.raises(InvalidInputError) as caught:
            await unreachable.log_step(DOMAIN, uuid4(), given)
        assert caught.value.field == f"entry.{field}"
    with pytest.raises(InvalidInputError):
        await unreachable.update_step_reply(DOMAIN, uuid4(), uuid4(), given)


def test_a_literal_backslash_u0000_is_no_nul() -> None:
    from commandbus_process._json import json_object_text  # noqa: PLC0415 - the one place that this test is about

    assert json_object_text({"a": "\\u0000"}, "state") == '{"a":"\\\\u0000"}'


async def test_an_error_names_the_place_and_quotes_no_value(unreachable: Repository) -> None:
    process = new_process()
    process.state["items"] = [{"price": float("nan"), "secret": "hunter2"}]
    with pytest.raises(InvalidInputError) as caught:
        await unreachable.save(process)
    assert "*.0.*: Input should be a finite number" in str(caught.value)  # keys are data too
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("domain", BAD_NAMES, ids=repr)
async def test_a_domain_that_no_process_can_have(unreachable: Repository, domain: Any) -> None:
    for call in (
        unreachable.get_by_id(domain, uuid4()),
        unreachable.find_by_status(domain, [ProcessStatus.PENDING]),
        unreachable.log_step(domain, uuid4(), entry()),
        unreachable.update_step_reply(domain, uuid4(), ID, StepReply(ID, ReplyOutcome.SUCCESS)),
        unreachable.get_audit_trail(domain, uuid4()),
        unreachable.get_completed_steps(domain, uuid4()),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await call
        assert caught.value.field == "domain"


async def test_ids_that_are_no_uuid(unreachable: Repository) -> None:
    text: Any = str(uuid4())
    with pytest.raises(InvalidInputError, match="process_id: must be a UUID, not str"):
        await unreachable.get_by_id(DOMAIN, text)
    answer = entry(reply_outcome=ReplyOutcome.SUCCESS)
    with pytest.raises(InvalidInputError, match="command_id: must be a UUID, not str"):
        await unreachable.update_step_reply(DOMAIN, uuid4(), text, answer)
    process = new_process().model_copy(update={"version": 1})
    bad = StepReply(ID, ReplyOutcome.SUCCESS).model_copy(update={"command_id": text})
    with pytest.raises(InvalidInputError, match=r"reply\.command_id: must be a UUID, not str"):
        await unreachable.advance(process, reply=bad)


@pytest.mark.parametrize("bad", ["PENDING", ProcessStatus.PENDING, ["PAUSED"], [None], None, 7], ids=repr)
async def test_statuses_that_are_none(unreachable: Repository, bad: Any) -> None:
    with pytest.raises(InvalidInputError, match="statuses"):
        await unreachable.find_by_status(DOMAIN, bad)


async def test_a_process_among_the_statuses_is_not_quoted(unreachable: Repository) -> None:
    process: Any = new_process().model_copy(update={"state": {"card": "hunter2"}})
    with pytest.raises(
        InvalidInputError, match="statuses: must be a collection of statuses, each one of PENDING"
    ) as caught:
        await unreachable.find_by_status(DOMAIN, [process])
    assert caught.value.__cause__ is None
    assert "hunter2" not in str(caught.value)


ID = uuid4()
BYPASSED = [
    *(("domain", bad) for bad in ("", "x" * 256, "a\0b")),
    ("process_type", "\0"),
    ("process_id", "7"),
    ("created_at", NAIVE),
    ("current_step", "x" * 256),
    ("status", "PAUSED"),
    ("version", "one"),
]


@pytest.mark.parametrize(("field", "bad"), BYPASSED, ids=str)
async def test_a_process_that_was_never_checked(unreachable: Repository, field: str, bad: object) -> None:
    # An update checks only what it writes, so that a row of other software's can be written.
    for write in (unreachable.save, unreachable.update) if field != "created_at" else (unreachable.save,):
        with pytest.raises(InvalidInputError):
            await write(new_process().model_copy(update={field: bad}))


@pytest.mark.parametrize(
    ("field", "bad"),
    [("step_name", ""), ("command_id", "7"), ("sent_at", NAIVE), ("reply_outcome", "PERHAPS"), ("received_at", NAIVE)],
    ids=str,
)
async def test_an_entry_that_was_never_checked(unreachable: Repository, field: str, bad: object) -> None:
    given = entry(reply_outcome=ReplyOutcome.SUCCESS).model_copy(update={field: bad})
    with pytest.raises(InvalidInputError):
        await unreachable.log_step(DOMAIN, uuid4(), given)
    if field.startswith("re"):
        with pytest.raises(InvalidInputError):
            await unreachable.update_step_reply(DOMAIN, uuid4(), uuid4(), given)


async def test_a_reply_without_outcome(unreachable: Repository) -> None:
    with pytest.raises(InvalidInputError, match="reply_outcome"):
        await unreachable.update_step_reply(DOMAIN, uuid4(), uuid4(), entry(reply_data={"a": 1}))


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"command_type": ""}, "command_type"),
        ({"reply_data": {"a": 1}}, "reply_outcome"),
        ({"received_at": NOON}, "reply_outcome"),
    ],
    ids=str,
)
async def test_an_entry_that_cannot_be_logged(unreachable: Repository, bad: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        await unreachable.log_step(DOMAIN, uuid4(), entry(**bad))
