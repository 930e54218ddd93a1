"""A cursor is read as what was written, and anything else is an error."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commandbus_process import InvalidInputError, ProcessFilter, ProcessStatus
from commandbus_process.postgres import _cursors
from commandbus_process.postgres._listing import Listing

WANTED = ProcessFilter(domain="orders")
MARK = _cursors.fingerprint(Listing(WANTED), "processes", newest_first=False)
TIMES = st.one_of(
    st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    st.sampled_from(["infinity", "-infinity", "0044-03-15T00:00:00+00:00 BC", "294276-12-31T23:59:59.999999+00:00"]),
)


@given(key=TIMES, ids=st.lists(st.uuids(), min_size=1, max_size=3))
def test_what_was_written_is_read(key: str, ids: list[UUID]) -> None:
    cursor = _cursors.encode(MARK, key, *ids)
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert _cursors.decode(MARK, cursor, len(ids)) == (key, ids)


@given(st.text())
def test_any_other_text_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInputError, match="after"):
        _cursors.decode(MARK, text)


def test_one_of_a_newer_version_is_an_error() -> None:
    cursor = _cursors.encode(MARK, "infinity", UUID(int=0))
    with pytest.raises(InvalidInputError, match="another version"):
        _cursors.decode(MARK, "M" + ("j" if cursor[1] != "j" else "i") + cursor[2:])


@pytest.mark.parametrize("key", ["", "yesterday", "2026-13-01T00:00:00+00:00", "now", "2026-01-01'; DROP TABLE x"])
def test_what_is_no_time_never_reaches_the_server(key: str) -> None:
    with pytest.raises(InvalidInputError, match="damaged"):
        _cursors.decode(MARK, _cursors.encode(MARK, key, UUID(int=0)))


def test_the_same_list_has_the_same_mark() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    one = ProcessFilter(domain="orders", statuses=[ProcessStatus.FAILED, ProcessStatus.PENDING], created_after=noon)
    same = ProcessFilter(
        domain="orders", statuses={ProcessStatus.PENDING, ProcessStatus.FAILED}, created_after=noon.astimezone()
    )
    assert _cursors.fingerprint(Listing(one), "x") == _cursors.fingerprint(Listing(same), "x")
    assert _cursors.fingerprint(Listing(one), "x") != _cursors.fingerprint(Listing(one), "y")
    assert _cursors.fingerprint(Listing(one), "x") != _cursors.fingerprint(Listing(WANTED), "x")
