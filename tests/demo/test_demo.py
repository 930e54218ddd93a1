import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import PostgresProcessRepository, ProcessStatus, ReplyOutcome
from demo.__main__ import most_telling
from demo.event_log import Case, EventLogError, read_event_log
from demo.order_log import write_order_log
from demo.replay import TASKS, import_in_bulk, remove, replay
from demo.rules import case_process_id, final_status, step_outcome
from demo.screen import human_duration, printable
from demo.server import Server, ServerError, parse_url
from demo.verify import compare
from tests.support import ROOT

RECEIPT = ROOT.parent / "shared" / "data" / "receipt.csv"
DOMAIN = "demo-test"

HEADER = "case:concept:name,concept:name,time:timestamp"
GOOD = "a,Pack,2024-05-31T13:45:00+02:00"
ORDERS = """\
case:concept:name,concept:name,time:timestamp,lifecycle:transition,org:resource,case:customer
one,Reserve,2024-05-01T10:00:00+00:00,complete,anna,Costa
two,Reserve,2024-05-01T10:30:00+00:00,complete,bert,Dubois
one,Pay,2024-05-01T11:00:00+00:00,ate_abort,,Costa
two,Pay,2024-05-01T11:30:00+00:00,complete,bert,Jansen
one,Release,2024-05-01T12:00:00+00:00,complete,anna,
"""

S, F, C = ReplyOutcome.SUCCESS, ReplyOutcome.FAILED, ReplyOutcome.CANCELED


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "orders.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- the event log


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        ("", ", line 1, column 'case:concept:name'", "the file is empty"),
        ("\ufeff", ", line 1, column 'case:concept:name'", "is missing"),
        (f"{HEADER}\n", ", line 2, column 'case:concept:name'", "there are no events"),
        ("case:concept:name,concept:name\na,b\n", ", line 1, column 'time:timestamp'", "is missing"),
        (HEADER.replace(",", ";"), ", line 1, column 'case:concept:name'", "is missing"),
        (f"{HEADER},x,x\n", ", line 1, column 'x'", "is in the header twice"),
        (f"{HEADER}\n{GOOD}\na,Pack\n", ", line 3, column 'time:timestamp'", "has 2 fields, and the header has 3"),
        (f"{HEADER}\n{GOOD},more\n", ", line 2, column 4", "has 4 fields, and the header has 3"),
        (f"{HEADER}\n,Pack,2024-05-31Z\n", ", line 2, column 'case:concept:name'", "is empty"),
        (f"{HEADER}\n{GOOD}\na, ,2024-05-31Z\n", ", line 3, column 'concept:name'", "is empty"),
        (f"{HEADER}\na,Pack,\n", ", line 2, column 'time:timestamp'", "is empty"),
        (f"{HEADER}\na,{'x' * 256},2024-05-31\n", ", line 2, column 'concept:name'", "256 characters"),
        (f"{HEADER}\n{GOOD}\na,Pack,12.13.2011\n", ", line 3, column 'time:timestamp'", "'12.13.2011' is not a time"),
        (f"{HEADER}\na,Pack,2024-05-31T13:45:00\n", ", line 2, column 'time:timestamp'", "has no offset from UTC"),
        (f"{HEADER}\na,Pack,0001-01-01T00:00+01:00\n", ", line 2, column 'time:timestamp'", "years 1 to 9999"),
        (f"{HEADER}\n{GOOD}\na,P\0ck,x\n", ", line 3, column 'concept:name'", "NUL character"),
        (f"{HEADER}\n{GOOD}\na,Päck,x\n".encode("latin-1"), ", line 3, column 'concept:name'", "0xe4"),
        (f"{HEADER},Größe\n".encode("latin-1"), ", line 1, column 4", "0xf6"),
        (f"{HEADER}\n".encode("utf-16"), ", line 1, column 1", "not UTF-8"),
        (f'{HEADER}\n{GOOD}\na,"Pack,2024\n{GOOD}\n', ", line 3", "a quotation mark opened here and never closed"),
        (f'{HEADER}\na,"Pa"ck,2024\n', ", line 2", "is not CSV"),
        (f"{HEADER}\na,{'x' * 200_000},2024\n", ", line 2", "field larger than field limit"),
        # Lines are counted as an editor does: those inside a quoted cell, and blank ones.
        (f'{HEADER}\na,"Pack\nand\nwrap",2024-05-31T13:45Z\n\nb,,x\n', ", line 6, column 'concept:name'", "is empty"),
        (f'{HEADER}\na,"Pack\nand\nwrap",never\n', ", line 2, column 'time:timestamp'", "is not a time"),
    ],
)
def test_a_malformed_log_is_refused_with_its_place(
    content: str | bytes, place: str, problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(EventLogError) as caught:
        read_event_log(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{place}: ")
    assert problem in message


def test_a_log_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EventLogError, match=r"nowhere.csv: cannot be read: No such file"):
        read_event_log(tmp_path / "nowhere.csv")
    with pytest.raises(EventLogError, match="is a folder"):
        read_event_log(tmp_path)


def test_cases_are_put_in_order(tmp_path: Path) -> None:
    log = """\
concept:name,time:timestamp,case:concept:name,case:total,note
third,2024-05-01T12:00:00+02:00,two,,
second,2024-05-01T10:00:01+01:00,one,5,"a, b"
tie 1,2024-05-01T11:00:00Z,one,,
first,2024-05-01T09:00:00+00:00,one,4,x
tie 2,2024-05-01T12:00:00+01:00,one,6,
"""
    two, one = read_event_log(written(tmp_path, b"\xef\xbb\xbf" + log.replace("\n", "\r\n").encode()))
    assert (two.case_id, one.case_id) == ("two", "one")
    assert [event.activity for event in one.events] == ["first", "second", "tie 1", "tie 2"]
    assert one.events[1].time == datetime(2024, 5, 1, 9, 0, 1, tzinfo=UTC)
    assert one.events[1].attributes == {"note": "a, b"}
    assert [event.case_attributes for event in one.events] == [{"total": "4"}, {"total": "5"}, {}, {"total": "6"}]
    assert two.events[0].transition == ""


@pytest.mark.skipif(not RECEIPT.exists(), reason="the receipt log is not beside this repository")
def test_a_real_log_is_read() -> None:
    cases = read_event_log(RECEIPT)
    assert len(cases) == 1_434
    assert sum(len(case.events) for case in cases) == 8_577


# --- what events mean


@pytest.mark.parametrize(
    ("transition", "outcome"),
    [("complete", S), ("", S), ("ate_abort", F), ("PI_ABORT", F), ("withdraw", C), ("suspend", S)],
)
def test_outcome(transition: str, outcome: ReplyOutcome) -> None:
    assert step_outcome(transition) == outcome


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([S], ProcessStatus.COMPLETED),
        ([S, S], ProcessStatus.COMPLETED),
        ([F], ProcessStatus.FAILED),
        ([S, F], ProcessStatus.FAILED),
        ([S, F, S], ProcessStatus.COMPENSATED),
        ([S, F, F], ProcessStatus.FAILED),  # the compensation itself failed
        ([C], ProcessStatus.CANCELED),
        ([S, C, S], ProcessStatus.CANCELED),
        ([C, F, S], ProcessStatus.CANCELED),
        ([F, C], ProcessStatus.CANCELED),
        ([C, F], ProcessStatus.FAILED),
    ],
)
def test_final_status(outcomes: list[ReplyOutcome], status: ProcessStatus) -> None:
    assert final_status(outcomes) == status


def test_the_generated_log_ends_in_every_way_and_is_always_the_same(tmp_path: Path) -> None:
    first, second, other = tmp_path / "first.csv", tmp_path / "second.csv", tmp_path / "other.csv"
    write_order_log(first)
    write_order_log(second)
    write_order_log(other, seed=1)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    cases = read_event_log(first)
    ends = Counter(final_status([step_outcome(event.transition) for event in case.events]) for case in cases)
    assert set(ends) == {status for status in ProcessStatus if status.is_terminal}
    assert ends.total() == 300
    chosen = most_telling(cases)
    assert {step_outcome(event.transition) for event in chosen.events[:-1]} > {S}


# --- what a person sees


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "no time"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (59.7, "1 min"),
        (65, "1 min 5 s"),
        (66_000, "18 h 20 min"),
        (86_400 + 7_200, "1 day 2 h"),
        (2 * 86_400 + 59, "2 days"),
    ],
)
def test_human_duration(seconds: float, words: str) -> None:
    assert human_duration(timedelta(seconds=seconds)) == words


def test_a_log_cannot_control_the_terminal() -> None:
    assert printable("Pack\x1b[31m\nGröße 📦") == "Pack·[31m·Größe 📦"


def test_no_password_is_shown() -> None:
    url = parse_url("postgres://me:secret@db:5433/shop?password=secret&host=db2&sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    shown = Server(url, is_embedded=False, restart=lambda: None).shown_url
    assert shown == "postgresql://me:***@db:5433/shop?host=db2"


@pytest.mark.parametrize("given", ["mysql://me:secret@db/shop", "me:secret", "postgresql://me:secret@db:port/shop", ""])
def test_a_wrong_url_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(ServerError) as caught:
        parse_url(given)
    assert "secret" not in str(caught.value)


# --- the database


@pytest.fixture
async def demo_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(parse_url(database_url), pool_size=TASKS)
    yield engine
    await engine.dispose()


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return read_event_log(written(tmp_path, ORDERS))


async def test_a_bulk_import_writes_all_and_leaves_nothing(demo_engine: AsyncEngine, cases: list[Case]) -> None:
    await replay(demo_engine, DOMAIN, cases)
    repository = PostgresProcessRepository(demo_engine)
    found = await repository.find_by_status(DOMAIN, list(ProcessStatus))
    ids = {case_process_id(DOMAIN, case.case_id): case_process_id("copy", case.case_id) for case in cases}
    copies = [each.model_copy(update={"domain": "copy", "process_id": ids[each.process_id]}) for each in found]
    assert (await import_in_bulk(demo_engine, "copy", copies, cases))[:2] == (2, 5)
    assert await repository.find_by_status("copy", list(ProcessStatus)) == []


async def test_a_replay_leaves_what_the_manager_did(demo_engine: AsyncEngine, cases: list[Case]) -> None:
    steps: list[None] = []
    totals = await replay(demo_engine, DOMAIN, cases, lambda: steps.append(None))
    assert (totals.cases, totals.steps, totals.transactions, len(steps)) == (2, 5, 7, 5)

    repository = PostgresProcessRepository(demo_engine)
    one = await repository.get_by_id(DOMAIN, case_process_id(DOMAIN, "one"))
    assert one is not None
    assert one.status == ProcessStatus.COMPENSATED
    assert one.state == {"case": "one", "attributes": {"customer": "Costa"}, "steps_done": 3, "last_step": "Release"}
    assert (one.error_code, one.error_message) == ("ate_abort", "The step 'Pay' failed.")
    assert one.current_step is None
    assert one.created_at == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert one.completed_at == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert one.version == 4
    trail = await repository.get_audit_trail(DOMAIN, one.process_id)
    assert [(entry.step_name, entry.reply_outcome, entry.sent_at.hour, entry.duration) for entry in trail] == [
        ("Reserve", S, 10, timedelta(0)),
        ("Pay", F, 10, timedelta(hours=1)),
        ("Release", S, 11, timedelta(hours=1)),
    ]
    assert [entry.command_data for entry in trail] == [{"org:resource": "anna"}, {}, {"org:resource": "anna"}]
    assert trail[1].reply_data == {"lifecycle:transition": "ate_abort"}

    [two] = await repository.find_by_status(DOMAIN, [ProcessStatus.COMPLETED])
    assert two.state["attributes"] == {"customer": "Jansen"}  # the later value


async def test_an_untouched_replay_is_as_the_log_has_it(demo_engine: AsyncEngine, cases: list[Case]) -> None:
    await replay(demo_engine, DOMAIN, cases)
    result = await compare(PostgresProcessRepository(demo_engine), DOMAIN, cases)
    assert result.differences == []
    assert (result.same_cases, result.cases, result.same_steps, result.steps) == (2, 2, 5, 5)


@pytest.mark.own_database
@pytest.mark.parametrize(
    ("change", "difference", "same"),
    [
        ("UPDATE process_audit SET reply_outcome = 'SUCCESS' WHERE reply_outcome = 'FAILED'", "reply_outcome", (1, 4)),
        ("UPDATE process_audit SET step_name = 'Payed' WHERE reply_outcome = 'FAILED'", "step_name", (1, 4)),
        ("UPDATE process_audit SET command_data = NULL WHERE step_name = 'Release'", "command_data", (1, 4)),
        ("UPDATE process_audit SET received_at = received_at + interval '1 us' WHERE id = 1", "received_at", (1, 4)),
        ("UPDATE process_audit SET reply_outcome = 'MAYBE' WHERE step_name = 'Release'", "cannot be read", (1, 2)),
        ("DELETE FROM process_audit WHERE step_name = 'Release'", "has 2 steps, and the log has 3", (1, 4)),
        ("UPDATE process SET state = state || '{\"steps_done\": 9}' WHERE status = 'COMPLETED'", "state", (1, 5)),
        ("UPDATE process SET status = 'FAILED' WHERE status = 'COMPLETED'", "status", (1, 5)),
        ("UPDATE process SET completed_at = NULL WHERE status = 'COMPLETED'", "completed_at", (1, 5)),
        ("UPDATE process SET state = '[]' WHERE status = 'COMPLETED'", "cannot be read", (0, 0)),
        (
            f"INSERT INTO process (domain, process_id, process_type) SELECT '{DOMAIN}', gen_random_uuid(), 'case'",
            "is no case of the log",
            (2, 5),
        ),
    ],
)
async def test_a_change_is_noticed(
    change: str, difference: str, same: tuple[int, int], demo_engine: AsyncEngine, cases: list[Case]
) -> None:
    await replay(demo_engine, DOMAIN, cases)
    async with demo_engine.begin() as conn:
        await conn.execute(text("SET LOCAL search_path TO commandbus"))
        await conn.execute(text("ALTER TABLE process_audit DROP CONSTRAINT process_audit_outcome_known"))
        await conn.execute(text(change.replace(":", r"\:")))
    result = await compare(PostgresProcessRepository(demo_engine), DOMAIN, cases)
    assert difference in " ".join(result.differences)
    assert (result.same_cases, result.same_steps) == same


async def test_a_missing_process_is_noticed(demo_engine: AsyncEngine, cases: list[Case]) -> None:
    await replay(demo_engine, DOMAIN, cases[:1])
    result = await compare(PostgresProcessRepository(demo_engine), DOMAIN, cases)
    assert result.differences == ["case 'two' has no process"]
    assert (result.same_cases, result.same_steps) == (1, 3)


async def test_only_the_rows_of_the_domain_are_removed(demo_engine: AsyncEngine, cases: list[Case]) -> None:
    await replay(demo_engine, DOMAIN, cases)
    await replay(demo_engine, "orders", cases)
    await remove(demo_engine, DOMAIN)
    repository = PostgresProcessRepository(demo_engine)
    assert await repository.find_by_status(DOMAIN, list(ProcessStatus)) == []
    assert (await compare(repository, "orders", cases)).differences == []


# --- all of it


DEMO = (sys.executable, "-m", "demo")


def demo_environment(database_url: str | None = None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {"COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
    return environment if database_url is None else {**environment, "DATABASE_URL": database_url}


def run_demo(*arguments: str, database_url: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=ROOT,
        env=demo_environment(database_url),
        timeout=120,
        check=False,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.database
def test_the_demo_on_an_embedded_server(tmp_path: Path) -> None:
    done = run_demo("--log", str(written(tmp_path, ORDERS)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 cases, 5 events" in done.stdout
    assert "Audit trail of case one: COMPENSATED after 2 h" in done.stdout
    assert "The database server was stopped and started again." in done.stdout
    assert "2 of 2 cases and 5 of 5 steps are as in the log." in done.stdout


async def test_the_demo_on_a_server_of_ones_own(tmp_path: Path, database_url: str, demo_engine: AsyncEngine) -> None:
    done = run_demo("--log", str(written(tmp_path, ORDERS)), database_url=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The demo changes only the rows of its own domain" in done.stdout
    assert "2 of 2 cases and 5 of 5 steps are as in the log." in done.stdout
    assert "were removed from your database." in done.stdout
    assert await stored_processes(demo_engine) == 0


async def stored_processes(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int((await conn.execute(text("SELECT count(*) FROM commandbus.process"))).scalar_one())


@pytest.mark.own_database
async def test_a_failure_half_way_leaves_nothing(tmp_path: Path, database_url: str, demo_engine: AsyncEngine) -> None:
    async with demo_engine.begin() as conn:
        await conn.execute(
            text("ALTER TABLE commandbus.process_audit ADD CONSTRAINT no_release CHECK (step_name <> 'Release')")
        )
    done = run_demo("--log", str(written(tmp_path, ORDERS)), database_url=database_url)
    assert done.returncode == 1
    assert "no_release" in done.stderr
    assert "Traceback" not in done.stderr
    assert "were removed from your database." in done.stdout
    assert await stored_processes(demo_engine) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_leaves_nothing(number: signal.Signals, database_url: str, demo_engine: AsyncEngine) -> None:
    demo = await asyncio.create_subprocess_exec(
        *DEMO, cwd=ROOT, env=demo_environment(database_url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            while await stored_processes(demo_engine) == 0:
                assert demo.returncode is None
            demo.send_signal(number)
            output, errors = await demo.communicate()
    finally:
        if demo.returncode is None:
            demo.kill()
    assert (demo.returncode, errors) == (130, b"Interrupted.\n")
    assert b"were removed from your database." in output
    assert b"Audit trail" not in output
    assert await stored_processes(demo_engine) == 0


def test_the_demo_refuses_a_malformed_log_before_it_touches_the_database(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}\n{GOOD}\na,Pack,12.13.2011\n")
    nowhere = "postgresql://me:secret@127.0.0.1:1/nowhere"  # connecting to it would be another error
    done = run_demo("--log", str(path), database_url=nowhere)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{path}, line 3, column 'time:timestamp': '12.13.2011' is not a time in ISO 8601" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_without_a_server_is_an_error_in_one_line(tmp_path: Path) -> None:
    nowhere = "postgresql://me:secret@127.0.0.1:1/nowhere"
    done = run_demo("--log", str(written(tmp_path, ORDERS)), database_url=nowhere)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stdout + done.stderr
