"""What is stored is compared, not what Python calls equal: a state either comes back as it was, or it is refused."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    RootModel,
    SecretStr,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import InvalidInputError, PostgresProcessRepository, ProcessAuditEntry, ReplyOutcome
from tests.support.compared_texts import BERLIN, AlwaysEqual, Frozen, Kept, SameId
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process
from tests.support.states import process_with


@pytest.fixture(scope="module")
async def shared_engine(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


def repository_for(engine: AsyncEngine, state: object) -> PostgresProcessRepository[Any]:
    own_class: object = type(state)
    return PostgresProcessRepository(engine, state_type=own_class)


KEPT: list[object] = [
    Kept(at=datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)),
    Kept(at=datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)),
    Kept(at=datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)),
    Kept(at=datetime(2026, 3, 1)),  # noqa: DTZ001 - one without a zone comes back without
    Kept(ats={datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 3, 1, tzinfo=UTC)}),
    Kept(clock=time(12, tzinfo=timezone(timedelta(hours=2)))),
    Kept(number=1e23, numbers=[1e16, -1.7976931348623157e308, 5e-324, 0.1]),
    Kept.model_validate({"said": '1e+16, "NaN", [1e+23]', "1e+16": "Infinity", "also": [10**30, 9e15]}),
    Kept(by_number={1: "a", 20: "b", 3: "c"}, line=deque([1, 2]), models=frozenset({Frozen(key=1), Frozen(key=2)})),
    SameId(key=1, token=SecretStr("**********")),
    AlwaysEqual(value={"a": [1, None, "x"]}),
    RootModel[float](1e23),
    RootModel[list[float]]([1e23]),
]


@pytest.mark.parametrize("state", KEPT, ids=repr)
async def test_what_python_calls_different_but_is_kept(shared_engine: AsyncEngine, state: Any) -> None:
    repository = repository_for(shared_engine, state)
    process = process_with(state)
    await repository.save(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert type(found.state) is type(state)
    assert found.state.model_dump(mode="json") == state.model_dump(mode="json")
    await repository.update(found)


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    number: float = 0.0
    loose: Any = None


class Texts(Constants):
    model_config = ConfigDict(ser_json_inf_nan="strings")


class Nulls(BaseModel):
    number: float | None = 0.0


@pytest.mark.parametrize(
    "state",
    [
        *(each(number=bad) for each in (Constants, Nulls) for bad in (float("inf"), float("-inf"), float("nan"))),
        Constants(loose=[float("nan")]),
        Texts(loose=float("inf")),
        RootModel[float](float("inf")),
    ],
    ids=repr,
)
async def test_infinity_is_refused_however_a_model_is_configured(shared_engine: AsyncEngine, state: Any) -> None:
    repository = repository_for(shared_engine, state)
    async with shared_engine.begin() as conn:
        with pytest.raises(InvalidInputError):
            await repository.save(process_with(state), conn)
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1  # the transaction is alive


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
async def test_infinity_that_a_model_writes_as_text_comes_back(shared_engine: AsyncEngine, number: float) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(shared_engine, state_type=Texts)
    process = process_with(Texts(number=number))
    await repository.save(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert str(found.state.number) == str(number)


@pytest.mark.parametrize("number", [1e16, -1e16, 1.5e17, 1e23, 1.7976931348623157e308])
async def test_a_float_that_jsonb_makes_an_integer_is_refused_where_no_type_restores_it(
    shared_engine: AsyncEngine, number: float
) -> None:
    async with shared_engine.connect() as conn:
        stored = (await conn.execute(text(f"SELECT jsonb_build_array('{number!r}'::jsonb)"))).scalar_one()
    assert isinstance(stored[0], int)
    repository = PostgresProcessRepository(shared_engine)
    process = new_process()
    process.state["total"] = [number]
    with pytest.raises(InvalidInputError, match=r"state: has a float of 1e16 or more.*integer or a string"):
        await repository.save(process)
    entry = ProcessAuditEntry(step_name="s", command_id=uuid4(), command_type="T", command_data={"n": number})
    with pytest.raises(InvalidInputError, match=r"entry.command_data: has a float of 1e16"):
        await repository.log_step(DOMAIN, process.process_id, entry)
    reply = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": {"n": number}})
    with pytest.raises(InvalidInputError, match="reply_data: has a float of 1e16"):
        await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply)


SETS = """
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict
from commandbus_process import ProcessMetadata
from commandbus_process._states import States

class Key(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str

class Inner(BaseModel):
    names: set[str]

@dataclass
class Plain:
    names: frozenset[str]
    inner: "list[Inner]"

class Typed(TypedDict):
    names: set[frozenset[str]]

class Recursive(BaseModel):
    names: set[str]
    children: "dict[str, Recursive]" = {}

class Everything(BaseModel):
    keys: set[Key]
    plain: Plain
    typed: Typed
    recursive: Recursive
    maybe: tuple[set[str] | None, int]
    either: set[int] | set[str]

class Other(BaseModel):
    other: set[str]

words = "the elements of a set come in the order of their hashes".split()
state = Everything(
    keys={Key(name=word) for word in words},
    plain=Plain(frozenset(words), [Inner(names=set(words))]),
    typed={"names": {frozenset(words), frozenset(words[:4]), frozenset(words[4:])}},
    recursive=Recursive(names=set(words), children={"one": Recursive(names=set(words))}),
    maybe=(set(words), 1),
    either=set(words),
)
for declared in (Everything, Everything | Other):
    process = ProcessMetadata[Everything](domain="d", process_id=UUID(int=1), process_type="t", state=state)
    print(States(declared).write(process))
"""


def test_sets_are_written_in_one_order_with_any_hash_seed() -> None:
    texts = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (0, 1, 2, 3)
    }
    [one] = texts
    first, second = one.splitlines()
    assert first == second
    assert json.loads(first)["plain"]["names"] == [
        *("a", "come", "elements", "hashes", "in", "of", "order", "set", "the", "their")
    ]
