"""Each difference: what the comparison says, that its statements help, and that the tables can then be used."""

import pytest

from commandbus_process.migrations.adoption import Verdict
from tests.postgres.adoption.acceptable import ACCEPTABLE
from tests.postgres.adoption.adopting import adopt_and_use, compared, make, named, run_statements
from tests.postgres.adoption.must_change import MUST_CHANGE, TYPES
from tests.postgres.adoption.variations import Variation
from tests.support.databases import execute
from tests.support.schema import rows, seed


@pytest.mark.parametrize("variation", ACCEPTABLE.values(), ids=ACCEPTABLE)
async def test_an_acceptable_difference(empty_database_url: str, variation: Variation) -> None:
    url = empty_database_url
    make(url, variation)
    found = compared(url)
    about = named(found, variation.named, variation.kind)
    assert (found.revision, about.verdict) == (variation.at, Verdict.ACCEPTABLE)
    assert variation.because in about.reason
    assert (about.statement, about.reason[-1]) == (None, ".")
    await adopt_and_use(url, found)


@pytest.mark.parametrize("variation", MUST_CHANGE.values(), ids=MUST_CHANGE)
async def test_a_difference_that_must_change(empty_database_url: str, variation: Variation) -> None:
    url = empty_database_url
    make(url, variation)
    found = compared(url)
    about = named(found, variation.named, variation.kind)
    assert (found.revision, about.verdict, found.fits) == (variation.at, Verdict.MUST_CHANGE, False)
    assert variation.because in about.reason
    assert about.reason[-1] == "."
    if variation.fill:
        execute(url, variation.fill)
        found = compared(url)
    run_statements(url, found)
    await adopt_and_use(url, compared(url))


@pytest.mark.parametrize(
    "name",
    [
        "times without a zone",
        "json",
        "json as text",
        "process ids as text",
        "command ids as text",
        "small ids",
        "an enumeration",
        "padded names",
    ],
)
def test_the_statements_keep_what_is_stored(empty_database_url: str, name: str) -> None:
    url = empty_database_url
    seed(url)
    kept = rows(url)
    execute(url, f"SET TIME ZONE 'UTC'; {TYPES[name].script}")
    run_statements(url, compared(url), zone="Asia/Tokyo")
    assert rows(url) == kept
