"""Input made to break something is stored and read back equal, or refused with a typed error; nothing else changes.

Everything here runs as the database's administrator: what a statement smuggled in could do, it would be allowed to do.
Each case has a process of its own, in one database with others that must stay as they are.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import BaseModel, JsonValue, ValidationError
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StoredDataError,
)
from tests.conftest import DOMAIN, new_process
from tests.support.databases import async_url

MEGABYTE = 1_000_000
CASES = "cases"  # the domain of the processes that are tried, where the text to try is none

STRINGS = {
    # Statements that end the library's own, or go on with it.
    "drop table": "'; DROP TABLE commandbus.process_audit; DROP TABLE commandbus.process; --",
    "delete": '"; DELETE FROM commandbus.process_audit; --',
    "truncate": "1); TRUNCATE commandbus.process CASCADE; --",
    "always true": "' OR '1'='1",
    "set status": "', status = 'FAILED', domain = '",
    "escaped quote": "\\'; UPDATE commandbus.process SET status = 'FAILED'; --",
    "dollar quotes": "$$; DROP SCHEMA commandbus CASCADE; $$",
    "union": "' UNION SELECT rolpassword FROM pg_authid --",
    "sleep": "'||pg_sleep(60)||'",
    "comment": "/* */ -- \n; */",
    "end of transaction": "'; COMMIT; DROP SCHEMA commandbus CASCADE; BEGIN; --",
    "program": "'; COPY commandbus.process TO PROGRAM 'cat'; --",
    "json operator": "' #- '{a}' || '",
    # What libraries on the way take for their own.
    "driver placeholders": "%s %b %t %(domain)s %(key_domain)s::UUID %% % %(",
    "SQLAlchemy parameters": ":domain :key_domain ::text \\:domain",
    "SQLAlchemy expansion": "__[POSTCOMPILE_statuses] __[POSTCOMPILE_statuses~~a~~b~~]",
    "braces": "{} {0} {domain} {{}} {domain!r:>10}",
    "server parameters": "$1 $2 $$ ? ?? @a #{b} ${c} <%= d %>",
    "lookup": "${jndi:ldap://127.0.0.1/a}",
    # Quotes and escapes.
    "quotes": "' '' \" \"\" ` \u00b4 \u2018\u2019 \u201e\u201c \u00ab\u00bb",
    "one quote": "'",
    "one double quote": '"',
    "one backslash": "\\",
    "backslashes": "\\\\ \\n \\N \\. \\x00 \\0 \\' \\\"",
    "an escaped NUL in letters": "\\u0000 \\\\u0000 \\ud800",
    "JSON": '{"a": [1, null]} null true NaN 1e400 //',
    "end of script": "</script><!-- ]]> <?",
    # Control characters, white space.
    "ASCII control characters": "".join(chr(code) for code in (*range(1, 32), 127)),
    "other control characters": "".join(chr(code) for code in range(128, 160)),
    "line ends": "a\r\nb\rc\nd\u0085e\u2028f\u2029g",
    "terminal": "\x1b[2J\x1b]0;title\x07",
    "white space around": " \t a \n ",
    "only white space": " ",
    "other spaces": "\u00a0\u2007\u3000\u180e",
    # Unicode.
    "right to left": "\u202egnp.exe\u202c \u200f\u200e \u2067a\u2069 \u05d0\u05d1 \u0627\u0644",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "many combining": "a" + "".join(chr(code) for code in range(0x300, 0x370)),
    "case": "\u00df \u1e9e \u0130 \u0131 \u01c5 \ufb01",
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 👍🏽",
    "other planes": "\U0001d54f \U0002070e \U00010348 \U000e0001 \U000f0000",
    "last characters": "\ufffd\ufffe\uffff\U0001fffe\U0010ffff",
    "alike": "\u0440\u0430\u0443\u0440\u0430l \uff46\uff55\uff4c\uff4c \u2163",
    # Lengths.
    "empty": "",
    "255 characters": "x" * 255,
    "255 characters of four bytes": "😀" * 255,
    "256 characters": "x" * 256,
    "a megabyte": "x" * MEGABYTE,
    # What PostgreSQL's text cannot hold.
    "NUL": "\0",
    "NUL inside": "a\0b",
    "NUL after a backslash": "\\\0",
    "high surrogate": "a\ud800b",
    "low surrogate": "\udfff",
    "a pair of surrogates that is no character": "\ud83d\ude00",
}


class Typed(BaseModel):
    text: str
    data: JsonValue = None


NAMES = ("domain", "process_type", "step_name", "command_type")
OPTIONAL_NAMES = ("current_step", "error_code")
TEXTS = ("error_message",)
JSON = ("state", "key of state", "command_data", "key of command_data", "reply_data", "typed state")
PLACES = (*NAMES, *OPTIONAL_NAMES, *TEXTS, *JSON)


def is_storable(text: str, place: str) -> bool:
    """What the library promises to store."""
    characters = "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
    shortest, longest = {**dict.fromkeys(NAMES, (1, 255)), **dict.fromkeys(OPTIONAL_NAMES, (0, 255))}.get(
        place, (0, len(text))
    )
    return characters and shortest <= len(text) <= longest


REFUSED = [(name, place) for name, text in STRINGS.items() for place in PLACES if not is_storable(text, place)]
STORED = [name for name, text in STRINGS.items() if any(is_storable(text, place) for place in PLACES)]


@pytest.fixture(scope="module")
async def owner(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
def repository(owner: AsyncEngine) -> PostgresProcessRepository[JsonObject]:
    return PostgresProcessRepository(owner)


@pytest.fixture(scope="module")
async def watch(
    shared_url: str, repository: PostgresProcessRepository[JsonObject]
) -> AsyncIterator[psycopg.Connection[Any]]:
    """A connection for what is seen from outside, to a database that has two processes that nobody is to touch."""
    for domain in (DOMAIN, "refunds"):
        process = new_process().model_copy(update={"domain": domain, "status": ProcessStatus.WAITING_FOR_REPLY})
        await repository.save(process)
        for outcome in (None, ReplyOutcome.SUCCESS):
            entry = ProcessAuditEntry(
                step_name="reserve", command_id=uuid4(), command_type="Reserve", command_data={}, reply_outcome=outcome
            )
            await repository.log_step(domain, process.process_id, entry)
    with psycopg.connect(shared_url, autocommit=True) as connection:
        yield connection


# Of the catalogue, what was made in this database; roles belong to the whole server.
EVERYTHING_ELSE = """
    SELECT 'process', process::text FROM commandbus.process WHERE process_id <> %(process_id)s
    UNION ALL SELECT 'audit', process_audit::text FROM commandbus.process_audit WHERE process_id <> %(process_id)s
    UNION ALL SELECT 'revision', version_num FROM commandbus.commandbus_process_version
    UNION ALL SELECT 'schema', concat_ws(' ', nspname, nspowner, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_temp'
    UNION ALL SELECT 'relation', concat_ws(' ', oid, relname, relkind, relowner, relacl, relrowsecurity)
        FROM pg_class WHERE oid >= 16384 AND relname !~ '^pg_toast'
    UNION ALL SELECT 'column', concat_ws(' ', attrelid, attname, atttypid, attnotnull, atthasdef, attacl)
        FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT 'constraint', concat_ws(' ', conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE oid >= 16384
    UNION ALL SELECT 'function', concat_ws(' ', proname, prosrc) FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'trigger', concat_ws(' ', tgname, tgenabled) FROM pg_trigger WHERE oid >= 16384
    UNION ALL SELECT 'setting', setconfig::text FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY 1, 2
"""


@pytest.fixture
def process_id() -> UUID:
    return uuid4()


@pytest.fixture(autouse=True)
def nothing_else_changes(watch: psycopg.Connection[Any], process_id: UUID) -> Iterator[None]:
    """Compares, after each case, all that does not belong to its process with what was there before it."""
    key = {"process_id": process_id}
    before = watch.execute(EVERYTHING_ELSE, key).fetchall()
    assert {kind for kind, _ in before} >= {"process", "audit", "relation", "column", "constraint"}
    yield
    assert watch.execute(EVERYTHING_ELSE, key).fetchall() == before
    watch.execute("DELETE FROM commandbus.process_audit WHERE process_id = %(process_id)s", key)
    watch.execute("DELETE FROM commandbus.process WHERE process_id = %(process_id)s", key)


@pytest.fixture
def statements(owner: AsyncEngine) -> Iterator[list[str]]:
    """What is sent to the server, until the test ends."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    event.listen(owner.sync_engine, "before_cursor_execute", note)
    yield sent
    event.remove(owner.sync_engine, "before_cursor_execute", note)


def made(process_id: UUID, texts: dict[str, str]) -> tuple[ProcessMetadata[Any], ProcessAuditEntry]:
    """A process and its replied step, with the texts in their places."""
    state: Any = {"text": texts.get("state", ""), texts.get("key of state", "key"): [{"deep": texts.get("state", "")}]}
    if "typed state" in texts:
        state = Typed(text=texts["typed state"], data={texts["typed state"]: [texts["typed state"]]})
    process = ProcessMetadata[Any](
        domain=texts.get("domain", CASES),
        process_id=process_id,
        process_type=texts.get("process_type", "order"),
        state=state,
        status=ProcessStatus.WAITING_FOR_REPLY,
        current_step=texts.get("current_step"),
        error_code=texts.get("error_code"),
        error_message=texts.get("error_message"),
    )
    entry = ProcessAuditEntry(
        step_name=texts.get("step_name", "reserve"),
        command_id=uuid4(),
        command_type=texts.get("command_type", "Reserve"),
        command_data={
            "text": texts.get("command_data", ""),
            texts.get("key of command_data", "key"): [texts.get("command_data", "")],
        },
        reply_outcome=ReplyOutcome.SUCCESS,
        reply_data={"text": texts.get("reply_data", ""), "list": [texts.get("reply_data", "")]},
    )
    entry.received_at = entry.sent_at
    return process, entry


def texts_of(process: ProcessMetadata[Any], entry: ProcessAuditEntry) -> dict[str, object]:
    """What stands in each place of a process and a step that were made as above."""
    found: dict[str, object] = {**dict(process), **dict(entry)}
    for column in ("state", "command_data", "reply_data"):
        value = found[column]
        if isinstance(value, Typed):
            assert value.data == {value.text: [value.text]}
            found["typed state"] = value.text
        elif isinstance(value, dict):
            data = cast("dict[str, object]", value)
            found[column] = data["text"]
            [found[f"key of {column}"]] = data.keys() - {"text"}
    return found


async def store(
    repository: PostgresProcessRepository[Any], process: ProcessMetadata[Any], entry: ProcessAuditEntry
) -> None:
    """Write the process, its step and the reply, each by the method that is there for it."""
    sent = entry.model_copy(update={"reply_outcome": None, "reply_data": None, "received_at": None})
    await repository.save(process)
    await repository.update(process)
    await repository.log_step(process.domain, process.process_id, sent)
    await repository.update_step_reply(process.domain, process.process_id, entry.command_id, entry)


@pytest.mark.parametrize("typed", [False, True], ids=["plain", "typed"])
@pytest.mark.parametrize("name", STORED)
async def test_a_string_is_stored_wherever_it_may_be_and_read_back_equal(
    owner: AsyncEngine, process_id: UUID, name: str, *, typed: bool
) -> None:
    text = STRINGS[name]
    elsewhere = {"state", "key of state"} if typed else {"typed state"}
    wanted = [place for place in PLACES if is_storable(text, place) and place not in elsewhere]
    repository = PostgresProcessRepository[Any](owner, state_type=Typed if typed else None)
    process, entry = made(process_id, dict.fromkeys(wanted, text))
    await store(repository, process, entry)
    # Again, which compares in the database what is there with what is given.
    await repository.log_step(process.domain, process_id, entry)
    await repository.update_step_reply(process.domain, process_id, entry.command_id, entry)
    found = await repository.get_by_id(process.domain, process_id)
    trail = await repository.get_audit_trail(process.domain, process_id)
    assert (found, trail) == (process, [entry])
    assert found is not None
    texts = texts_of(found, trail[0])
    assert [place for place in wanted if texts[place] != text] == []
    assert await repository.get_completed_steps(process.domain, process_id) == [entry.step_name]
    waiting = [ProcessStatus.WAITING_FOR_REPLY]
    assert await repository.find_by_status(process.domain, waiting) == [process]
    async with owner.begin() as conn:
        claimed = await repository.claim(process.domain, waiting, conn, limit=9, process_type=process.process_type)
        assert claimed == [process]


@pytest.mark.parametrize(("name", "place"), REFUSED)
async def test_a_string_that_cannot_be_stored_is_refused_before_any_sql(
    owner: AsyncEngine, process_id: UUID, statements: list[str], name: str, place: str
) -> None:
    repository = PostgresProcessRepository[Any](owner, state_type=Typed if place == "typed state" else None)

    async def attempt() -> None:
        # What belongs to the process is refused with the process; what belongs to the step, with the step.
        process, entry = made(process_id, {place: STRINGS[name]})
        if place in {"step_name", "command_type", "command_data", "key of command_data", "reply_data"}:
            await repository.log_step(process.domain, process_id, entry)
        else:
            await repository.save(process)

    with pytest.raises((ValidationError, InvalidInputError)) as caught:
        await attempt()
    assert place.removeprefix("key of ").removeprefix("typed ") in str(caught.value)
    assert statements == []


READERS: dict[str, Callable[[PostgresProcessRepository[Any], str], Any]] = {
    "get_by_id": lambda repository, domain: repository.get_by_id(domain, UUID(int=1)),
    "find_by_status": lambda repository, domain: repository.find_by_status(domain, list(ProcessStatus)),
    "get_audit_trail": lambda repository, domain: repository.get_audit_trail(domain, UUID(int=1)),
    "get_completed_steps": lambda repository, domain: repository.get_completed_steps(domain, UUID(int=1)),
}


@pytest.mark.parametrize("reader", READERS)
async def test_a_domain_that_is_looked_for_finds_nothing_or_is_refused(
    repository: PostgresProcessRepository[JsonObject], statements: list[str], reader: str
) -> None:
    for text in STRINGS.values():
        statements.clear()
        if is_storable(text, "domain"):
            assert not await READERS[reader](repository, text)
            assert len(statements) == 1
        else:
            with pytest.raises(InvalidInputError):
                await READERS[reader](repository, text)
            assert statements == []


async def test_no_string_of_them_is_a_status(
    repository: PostgresProcessRepository[JsonObject], statements: list[str]
) -> None:
    """Statuses are written into the statement, so this is where one could smuggle something in."""
    for text in STRINGS.values():
        hostile: Any = [text, f"WAITING{text}" if text else "WAITING'", ProcessStatus.PENDING]
        with pytest.raises(InvalidInputError, match="statuses"):
            await repository.find_by_status(DOMAIN, hostile)
    assert statements == []


def nested(depth: int) -> JsonValue:
    value: JsonValue = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


LARGE: dict[str, JsonObject] = {
    "one string of a megabyte": {"text": "é" * (MEGABYTE // 2)},
    "one key of a megabyte": {"k" * MEGABYTE: 1},
    "50,000 keys": {f"key {number}": number for number in range(50_000)},
    "100,000 elements": {"list": list(range(100_000))},
    "100 deep": {"deep": nested(100)},
    "a number of 4,000 digits": {"n": 10**4000 - 1},
}


@pytest.mark.parametrize("name", LARGE)
async def test_large_json_is_stored_and_read_back_equal(
    repository: PostgresProcessRepository[JsonObject], process_id: UUID, name: str
) -> None:
    process, entry = made(process_id, {})
    process.state = entry.command_data = entry.reply_data = LARGE[name]
    await store(repository, process, entry)
    assert await repository.get_by_id(CASES, process_id) == process
    assert await repository.get_audit_trail(CASES, process_id) == [entry]


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
@pytest.mark.parametrize("place", ["state", "typed state", "command_data", "reply_data"])
async def test_json_that_nests_too_deep_is_refused_before_any_sql(
    owner: AsyncEngine, process_id: UUID, statements: list[str], depth: int, place: str
) -> None:
    deep: JsonObject = {"deep": nested(depth)}

    async def given_at_once() -> None:
        process, entry = made(process_id, {})
        match place:
            case "state":
                fields: dict[str, Any] = {**dict(process), "state": deep}
                process = ProcessMetadata[JsonObject](**fields)
                await PostgresProcessRepository[JsonObject](owner).save(process)
            case "typed state":
                process.state = Typed(text="", data=deep)
                await PostgresProcessRepository[Any](owner, state_type=Typed).save(process)
            case _:
                setattr(entry, place, deep)
                await PostgresProcessRepository[JsonObject](owner).log_step(CASES, process_id, entry)

    async def put_in_place() -> None:
        process, entry = made(process_id, {})
        match place:
            case "state":
                process.state["deep"] = deep["deep"]
                await PostgresProcessRepository[JsonObject](owner).save(process)
            case "typed state":
                process.state = Typed.model_construct(text="", data=deep)
                await PostgresProcessRepository[Any](owner, state_type=Typed).save(process)
            case _:
                getattr(entry, place)["deep"] = deep["deep"]
                await PostgresProcessRepository[JsonObject](owner).log_step(CASES, process_id, entry)

    for attempt in (given_at_once, put_in_place):
        with pytest.raises((ValidationError, InvalidInputError)):
            await attempt()
    assert statements == []


# What only plain SQL can write: values in a JSON object, as SQL expressions.
UNREADABLE = {
    "500 deep": "repeat('[', 500) || repeat(']', 500)",
    "5,000 deep": "repeat('[', 5000) || repeat(']', 5000)",
    "5,000 objects deep": "repeat('{\"a\": ', 5000) || '1' || repeat('}', 5000)",
    "a number of 5,000 digits": "repeat('7', 5000)",
    "a fraction too large for a float": "'1' || repeat('0', 400) || '.5'",
}
READABLE: dict[str, tuple[str, JsonValue]] = {
    "100 deep": ("repeat('[', 100) || repeat(']', 100)", json.loads("[" * 100 + "]" * 100)),
    "five megabytes": ("'\"' || repeat('é', 2500000) || '\"'", "é" * 2_500_000),
    "a number of 4,000 digits": ("repeat('7', 4000)", (10**4000 - 1) // 9 * 7),
    "an integer beyond floats": ("'1e400'", 10**400),
}


def in_an_object(value: str) -> str:
    return f"'{{\"a\": ' || {value} || '}}'"


BAD = {
    **{name: in_an_object(value) for name, value in UNREADABLE.items()},
    "array": "'[1]'",
    "string": "'\"text\"'",
    "number": "'1'",
    "boolean": "'true'",
}


def written_by_plain_sql(
    watch: psycopg.Connection[Any], process_id: UUID, *, state: str = "'{}'", data: str = "NULL", reply: str = "NULL"
) -> None:
    """Write a process, and a replied step with the process's id as its command's, around SQL expressions for JSON."""
    key = {"domain": CASES, "id": process_id}
    watch.execute(
        "INSERT INTO commandbus.process (domain, process_id, process_type, status, state) "
        f"VALUES (%(domain)s, %(id)s, 'order', 'FAILED', ({state})::jsonb)".encode(),
        key,
    )
    watch.execute(
        "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, "
        "sent_at, reply_outcome, reply_data, received_at) VALUES (%(domain)s, %(id)s, 'reserve', %(id)s, 'Reserve', "
        f"({data})::jsonb, now(), 'SUCCESS', ({reply})::jsonb, now())".encode(),
        key,
    )


async def assert_goes_on_working(repository: PostgresProcessRepository[JsonObject], process_id: UUID) -> None:
    """Other processes can be written and read, and what need not be parsed of the bad one can be read too."""
    other, _ = made(process_id, {"domain": "other cases"})
    await repository.save(other)
    assert await repository.get_by_id(other.domain, process_id) == other
    assert await repository.find_by_status(other.domain, [other.status]) == [other]
    assert await repository.get_completed_steps(CASES, process_id) == ["reserve"]


@pytest.mark.parametrize("state", [*BAD.values(), "'null'"], ids=[*BAD, "null"])
async def test_a_stored_state_that_cannot_be_read_is_an_error_of_its_row(
    owner: AsyncEngine, watch: psycopg.Connection[Any], process_id: UUID, state: str
) -> None:
    written_by_plain_sql(watch, process_id, state=state)
    plain = PostgresProcessRepository[JsonObject](owner)
    typed = PostgresProcessRepository[Any](owner, state_type=dict[str, JsonValue])
    for repository in (plain, typed):
        async with owner.begin() as conn:
            for read in (
                repository.get_by_id(CASES, process_id),
                repository.find_by_status(CASES, [ProcessStatus.FAILED]),
                repository.claim(CASES, [ProcessStatus.FAILED], conn, limit=1),
            ):
                with pytest.raises(StoredDataError) as caught:
                    await read
                assert (caught.value.domain, caught.value.process_id) == (CASES, process_id)
                assert len(str(caught.value)) < 2_000  # an error is logged; it must not carry the state along
            # The caller's transaction goes on too.
            assert await repository.get_completed_steps(CASES, process_id, conn) == ["reserve"]
    await assert_goes_on_working(plain, process_id)


@pytest.mark.parametrize("column", ["data", "reply"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_stored_data_of_a_step_that_cannot_be_read_is_an_error_of_its_row(
    repository: PostgresProcessRepository[JsonObject],
    watch: psycopg.Connection[Any],
    process_id: UUID,
    column: str,
    value: str,
) -> None:
    written_by_plain_sql(watch, process_id, **{column: value})
    with pytest.raises(StoredDataError, match=str(process_id)) as caught:
        await repository.get_audit_trail(CASES, process_id)
    assert (caught.value.domain, caught.value.process_id) == (CASES, process_id)
    assert f"command {process_id}" in str(caught.value)
    assert len(str(caught.value)) < 2_000
    await assert_goes_on_working(repository, process_id)


@pytest.mark.parametrize("name", READABLE)
async def test_what_plain_sql_wrote_and_can_be_read_is_read_right(
    repository: PostgresProcessRepository[JsonObject], watch: psycopg.Connection[Any], process_id: UUID, name: str
) -> None:
    expression, expected = READABLE[name]
    written = in_an_object(expression)
    written_by_plain_sql(watch, process_id, state=written, data=written, reply=written)
    found = await repository.get_by_id(CASES, process_id)
    assert found is not None
    assert found.state == {"a": expected}
    [entry] = await repository.get_audit_trail(CASES, process_id)
    assert (entry.command_data, entry.reply_data) == ({"a": expected}, {"a": expected})


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"])
@pytest.mark.parametrize("column", ["created_at", "updated_at", "completed_at"])
async def test_a_stored_time_that_python_does_not_have_is_an_error_of_its_row(
    repository: PostgresProcessRepository[JsonObject],
    watch: psycopg.Connection[Any],
    process_id: UUID,
    column: str,
    time: str,
) -> None:
    written_by_plain_sql(watch, process_id)
    watch.execute(f"UPDATE commandbus.process SET {column} = %s WHERE process_id = %s".encode(), (time, process_id))
    with pytest.raises(StoredDataError) as caught:
        await repository.get_by_id(CASES, process_id)
    assert (caught.value.domain, caught.value.process_id) == (CASES, process_id)


@pytest.mark.parametrize("state", ["'{}'", in_an_object("'\"' || repeat('7', 400) || '\"'")], ids=["plain", "checked"])
@pytest.mark.parametrize("year", ["0002", "1880", "2026"])
async def test_a_time_is_read_right_whatever_the_zone_of_the_session_was_then(
    owner: AsyncEngine, watch: psycopg.Connection[Any], process_id: UUID, year: str, state: str
) -> None:
    """In 1880 Amsterdam's clocks differed from UTC by minutes and seconds."""
    written_by_plain_sql(watch, process_id, state=state)
    time = datetime.fromisoformat(f"{year}-07-01T12:30:15.000120+00:00")
    watch.execute(b"UPDATE commandbus.process SET created_at = %s WHERE process_id = %s", (time, process_id))
    repository = PostgresProcessRepository(owner)
    async with owner.begin() as conn:
        await conn.exec_driver_sql("SET LOCAL TIME ZONE 'Europe/Amsterdam'")
        found = await repository.get_by_id(CASES, process_id, conn)
        assert found is not None
        assert (found.created_at, found.created_at.tzinfo) == (time, UTC)
        assert await repository.find_by_status(CASES, [found.status], conn) == [found]


async def test_a_json_null_that_plain_sql_wrote_is_no_data(
    repository: PostgresProcessRepository[JsonObject], watch: psycopg.Connection[Any], process_id: UUID
) -> None:
    written_by_plain_sql(watch, process_id, data="'null'", reply="'null'")
    [entry] = await repository.get_audit_trail(CASES, process_id)
    assert (entry.command_data, entry.reply_data) == (None, None)
