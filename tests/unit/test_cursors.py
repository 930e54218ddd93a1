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
    st.sampled_from(
        [
            "infinity",
            "-infinity",
            "0044-03-15T00:00:00+00:00 BC",
            "0005-02-29T00:00:00+00:00 BC",  # year -4
            "4714-11-24T00:00:00+00:00 BC",
            "294276-12-31T23:59:59.999999+00:00",
            "1883-11-18T12:03:57-04:56:02",
        ]
    ),
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


@pytest.mark.parametrize(
    "key",
    [
        "",
        "yesterday",
        "now",
        "2026-01-01'; DROP TABLE x",
        "2026-13-01T00:00:00+00:00",
        "2026-02-29T00:00:00+00:00",
        "1900-02-29T00:00:00+00:00",
        "0004-02-29T00:00:00+00:00 BC",  # year -3
        "0000-01-01T00:00:00+00:00",
        "999999-01-01T00:00:00+00:00",
        "294276-12-31T23:59:59-00:01",
        "4714-11-23T23:59:59+00:00 BC",
        "2026-01-01T00:00:00+16:00",
        "2026-01-01T00:00:00+00:70",
        "2026-01-01T00:00:00+00:00:60",
        "2026-01-01T00:00:00",
        "2026-01-01",
        "2026-W10-1",
        "20260101T000000Z",
        "infinity BC",
        "2026-01-01T00:00:00+00:00 AD",
    ],
)
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
