"""The DETAIL of a failing CHECK quotes the row, with its state: what does not keep it out of logs, and what does."""

import traceback
from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Insert, event, insert, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process.tables import process
from tests.support.databases import async_url
from tests.support.items import DOMAIN

PAYLOAD = "hunter2"


@pytest.fixture
async def hiding_engine(application_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(application_url), hide_parameters=True)
    yield engine
    await engine.dispose()


def keep_rows_out(context: ExceptionContext) -> None:
    """The listener that README recommends."""
    original, raised = context.original_exception, context.sqlalchemy_exception
    if isinstance(original, psycopg.Error) and raised is not None:
        original.args = (original.diag.message_primary,)
        raised.args = (f"({original.diag.sqlstate}) {original.diag.message_primary}",)


def refused_row(**changes: object) -> Insert:
    state = {"password": PAYLOAD}
    values = {"domain": DOMAIN, "process_id": uuid4(), "process_type": "order", "state": state, **changes}
    return insert(process).values(values)


async def error_of(engine: AsyncEngine, **changes: object) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        async with engine.begin() as connection:
            await connection.execute(refused_row(**changes))
    return caught.value


def logged(error: BaseException) -> str:
    """What `logger.exception` writes, and what most software writes instead."""
    return f"{error} {error!r} {''.join(traceback.format_exception(error))}"


# A CHECK is not the only one: NOT NULL quotes the row too.
REFUSED = [{"status": "PAUSED"}, {"process_type": None}]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
async def test_hide_parameters_does_not_hide_the_row(hiding_engine: AsyncEngine, changes: dict[str, object]) -> None:
    error = await error_of(hiding_engine, **changes)
    assert PAYLOAD in str(error)
    assert "[SQL parameters hidden" in str(error)


async def test_the_servers_setting_is_about_its_own_log(administrator: AsyncEngine) -> None:
    async with administrator.connect() as connection:
        await connection.execute(text("SET log_error_verbosity = terse"))
        with pytest.raises(IntegrityError, match=f"Failing row contains .*{PAYLOAD}"):
            await connection.execute(refused_row(status="PAUSED"))


@pytest.mark.parametrize("changes", REFUSED, ids=str)
async def test_fields_of_the_error_say_what_was_refused(hiding_engine: AsyncEngine, changes: dict[str, object]) -> None:
    error = await error_of(hiding_engine, **changes)
    assert isinstance(error.orig, psycopg.Error)
    diag = error.orig.diag
    told = f"{diag.sqlstate} {diag.constraint_name} {diag.table_name} {diag.column_name} {diag.message_primary}"
    assert PAYLOAD not in told
    assert ("process_status_known" if "status" in changes else "process_type") in told


@pytest.mark.parametrize("changes", REFUSED, ids=str)
async def test_a_listener_keeps_the_row_out_of_the_error(
    hiding_engine: AsyncEngine, changes: dict[str, object]
) -> None:
    event.listen(hiding_engine.sync_engine, "handle_error", keep_rows_out)
    error = await error_of(hiding_engine, **changes)
    assert PAYLOAD not in logged(error)
    assert 'relation "process" violates' in str(error)
    assert isinstance(error.orig, psycopg.Error)
    assert error.orig.sqlstate == error.orig.diag.sqlstate  # what the library looks at is still there
