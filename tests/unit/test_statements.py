"""The SQL of each statement stands in tests/sql, so that it can be read in one place, and a change of it is seen.

`make sql` writes the files anew.
"""

import os
import re
from collections.abc import Collection, Iterator

import pytest
from sqlalchemy import ClauseElement

from commandbus_process import ProcessStatus
from commandbus_process._arguments import sorted_statuses
from commandbus_process.postgres import _claiming, _listing, _pages, _retention, _statistics
from tests.support import ROOT
from tests.support.databases import DIALECT
from tests.support.statements import STATEMENTS

FOLDER = ROOT / "tests/sql"
ONE, TWO, EVERY = ("WAITING",), ("FAILED", "WAITING"), sorted_statuses(ProcessStatus)
ALL_CONDITIONS = frozenset({*_listing.CONDITIONS, "limit"})


def statements() -> Iterator[tuple[str, ClauseElement]]:
    for name, statement in STATEMENTS.items():
        yield name.lower(), statement
    yield "find_by_status_one", _listing.find_by_status(ONE)
    yield "find_by_status_two_filtered", _listing.find_by_status(TWO, ALL_CONDITIONS)
    yield "claim_one", _listing.claim(ONE)
    yield "claim_one_filtered", _listing.claim(ONE, ALL_CONDITIONS)
    yield "claim_two", _listing.claim(TWO)
    yield "claim_two_filtered", _listing.claim(TWO, ALL_CONDITIONS)
    yield "claim_by_deadline", _listing.claim(TWO, frozenset({"deadline_before", "limit"}))
    yield "candidates_one", _claiming.candidates(ONE, frozenset[str]())
    yield "candidates_two_filtered", _claiming.candidates(TWO, ALL_CONDITIONS)
    yield "candidates_by_deadline", _claiming.candidates(TWO, frozenset({"deadline_before"}))
    on = frozenset({"after_key", "after_id", "limit"})
    yield "page", _pages.summaries(ONE, on, newest_first=False, steps=False)
    yield "page_newest_first_with_steps", _pages.summaries(TWO, on, newest_first=True, steps=True)
    yield "page_by_business_key", _pages.summaries(EVERY, on | {"business_key"}, newest_first=False, steps=False)
    yield "page_by_deadline", _pages.summaries(TWO, on | {"deadline_before"}, newest_first=False, steps=False)
    yield "stream", _pages.processes(TWO, on, newest_first=False)
    yield "stream_consistent", _pages.processes(TWO, frozenset[str](), newest_first=False)
    yield "backlog", _statistics.backlog(frozenset({"process_type"}))
    yield "step_statistics", _statistics.step_statistics(TWO, frozenset({"created_after"}))
    yield "open_steps", _statistics.open_steps(TWO, on | {"after_command"}, before=True)
    due = frozenset({"created_before", "limit"})
    yield "lock_due_first", _retention.lock_due(_retention.ENDED, due)
    yield "lock_due", _retention.lock_due(("FAILED",), due | {"after_key", "after_id"})
    yield "delete_ended", _retention.delete_ended(_retention.ENDED)
    yield "preview_ended", _retention.preview(_retention.ENDED)
    yield "count", _pages.count(TWO, frozenset({"limit"}))


def written(statement: ClauseElement) -> str:
    text = " ".join(str(statement.compile(dialect=DIALECT)).split())
    assert not re.search(r"\b(FROM|JOIN|INTO|UPDATE) process", text), "a table is not qualified with its schema"
    text = re.sub(r"%\((\w+)\)s", r":\1", text)
    parts = "FROM|WHERE|JOIN|LEFT OUTER JOIN|ORDER BY|VALUES|SET|ON CONFLICT|RETURNING|FOR NO KEY"
    text = re.sub(rf"(?<!epoch) ({parts})\b", r"\n\1", text)
    return re.sub(r"(\), )(\w+ AS \()", r"\1\n\2", text).replace(" SELECT ", "\nSELECT ") + "\n"


BY_FILE = dict(statements())


@pytest.mark.parametrize("name", BY_FILE)
def test_a_statement_is_the_one_in_its_file(name: str) -> None:
    file = FOLDER / f"{name}.sql"
    if os.environ.get("WRITE_SQL"):
        file.write_text(written(BY_FILE[name]))
    assert file.read_text() == written(BY_FILE[name])


def test_each_file_has_a_statement() -> None:
    assert {file.stem for file in FOLDER.glob("*.sql")} == set(BY_FILE)


@pytest.mark.parametrize("name", BY_FILE)
def test_functions_are_those_of_the_server(name: str) -> None:
    """One of the same name in another schema could answer for the database, with the application's rights."""
    calls = re.findall(r"(?<![\w.])([a-z_]+)\(", written(BY_FILE[name]))
    of_the_grammar = {"coalesce", "nullif"}
    names_with_columns = {"process", "process_audit", "given_processes", "given_steps", "given_sent", "given_keys"}
    assert set(calls) <= of_the_grammar | names_with_columns


def test_only_what_is_a_status_gets_into_a_statement() -> None:
    smuggled = ("WAITING' OR 'a' = 'a",)
    with pytest.raises(ValueError, match="is not a valid ProcessStatus"):
        _listing.find_by_status(smuggled)
    with pytest.raises(ValueError, match="is not a valid ProcessStatus"):
        _listing.claim((*smuggled, "WAITING"))


@pytest.mark.parametrize(
    "statuses",
    [
        [ProcessStatus.WAITING_FOR_REPLY, ProcessStatus.FAILED],
        [ProcessStatus.FAILED, ProcessStatus.WAITING_FOR_REPLY, ProcessStatus.FAILED],
        {ProcessStatus.FAILED, ProcessStatus.WAITING_FOR_REPLY},
    ],
    ids=["one order", "the other, and one twice", "none"],
)
def test_statuses_in_any_order_are_one_statement(statuses: Collection[ProcessStatus]) -> None:
    """Which is prepared once."""
    assert _listing.find_by_status(sorted_statuses(statuses)) is _listing.find_by_status(TWO)
    assert _listing.claim(sorted_statuses(statuses)) is _listing.claim(TWO)
