"""Any JSON object survives the way to PostgreSQL and back; what would not is refused before any SQL."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ReplyOutcome,
)
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process

# One database and one connection pool for all examples of a test: each example is a process of its own.
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# Larger floats have no fraction, and jsonb gives them back as integers: they are refused.
LARGE = 1e16
FLOATS = st.floats(-LARGE, LARGE, exclude_min=True, exclude_max=True)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | TEXT
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=20
)
OBJECTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(TEXT, VALUES, max_size=6)

BAD_SCALARS = st.sampled_from(
    [float("nan"), float("inf"), float("-inf"), LARGE, -1.5e300, "\0", "\ud800", "a\udfff", (1,), b"x", {1: 2}]
)


def equal(stored: JsonValue, given: JsonValue) -> bool:
    """Equality that knows types: to Python, 1 equals True and 1.0."""
    if isinstance(given, dict) and isinstance(stored, dict):
        return stored.keys() == given.keys() and all(equal(stored[key], given[key]) for key in given)
    if isinstance(given, list) and isinstance(stored, list):
        return len(stored) == len(given) and all(map(equal, stored, given))
    return type(stored) is type(given) and stored == given


@pytest.fixture(scope="module")
async def shared_engine(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@SETTINGS
@given(state=OBJECTS, command_data=st.none() | OBJECTS, reply_data=st.none() | OBJECTS)
@example(
    state={"x": 9007199254740993.0, "y": 5e-324, "z": -0.0, "n": 10**400},
    command_data={},
    reply_data={"\\u0000": "\\\\u0000"},
)
@example(state={"\ue000\u202e\x1f\x7f": "\U0001f600"}, command_data={"": {"": [[], {}]}}, reply_data=None)
async def test_any_json_object_survives(
    shared_engine: AsyncEngine, state: Any, command_data: Any, reply_data: Any
) -> None:
    repository = PostgresProcessRepository(shared_engine)
    process = ProcessMetadata(domain=DOMAIN, process_id=uuid4(), process_type="order", state=state)
    entry = ProcessAuditEntry(step_name="s", command_id=uuid4(), command_type="T", command_data=command_data)
    answer = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": reply_data})
    async with shared_engine.begin() as conn:
        await repository.save(process, conn)
        await repository.update(process, conn)
        await repository.log_step(DOMAIN, process.process_id, entry, conn)
        await repository.log_step(DOMAIN, process.process_id, entry, conn)
        for _ in range(2):
            await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, answer, conn)
        found = await repository.get_by_id(DOMAIN, process.process_id, conn)
        [step] = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
    assert found is not None
    assert equal(found.state, state)
    assert equal(step.command_data, command_data)
    assert equal(step.reply_data, reply_data)


class Measured(BaseModel):
    value: float
    others: dict[str, float] = {}


@SETTINGS
@given(state=st.builds(Measured, value=st.floats(), others=st.dictionaries(TEXT, st.floats(), max_size=3)))
@example(state=Measured(value=1e23))
async def test_a_typed_state_keeps_its_floats_or_is_refused(shared_engine: AsyncEngine, state: Measured) -> None:
    repository = PostgresProcessRepository(shared_engine, state_type=Measured)
    process = ProcessMetadata[Measured](domain=DOMAIN, process_id=uuid4(), process_type="measured", state=state)
    finite = all(abs(value) < float("inf") for value in (state.value, *state.others.values()))
    async with shared_engine.begin() as conn:
        if not finite:
            with pytest.raises(InvalidInputError):
                await repository.save(process, conn)
            return
        await repository.save(process, conn)
        found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found is not None
    assert found.state == state
    assert isinstance(found.state.value, float)


def with_one_bad_value(good: dict[str, Any], bad: Any, path: list[str]) -> dict[str, Any]:
    for key in path:
        bad = {key: bad, "beside": [good]}
    return {"here": bad, **good}


@SETTINGS
@given(
    good=st.dictionaries(TEXT.filter(lambda key: key != "here"), VALUES, max_size=3),
    bad=BAD_SCALARS,
    path=st.lists(TEXT.filter(lambda key: key != "beside"), max_size=4),
)
async def test_what_does_not_survive_is_refused_before_any_sql(good: dict[str, Any], bad: Any, path: list[str]) -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    repository = PostgresProcessRepository(engine)
    process = new_process()
    process.state.update(with_one_bad_value(good, bad, path))
    with pytest.raises(InvalidInputError):
        await repository.save(process)
