"""What a preview counts is what a purge deletes."""

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import ProcessRetention, ProcessStatus, PurgeProgress
from tests.support.databases import execute
from tests.support.ended import END, ended, last, store
from tests.support.items import DOMAIN

MARCH = datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)


async def test_by_type_and_month_of_the_end(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    await store(
        administrator,
        [
            ended(created=900, completed_at=MARCH),
            ended(created=900, completed_at=APRIL),
            ended(created=900, completed_at=APRIL, status=ProcessStatus.FAILED),
            ended(created=900, ended=None, updated_at=APRIL),
            ended(created=900, completed_at=MARCH, process_type="refund"),
            ended(created=900, ended=-1),
            ended(status=ProcessStatus.PENDING),
            ended(domain="other"),
        ],
        3,
    )
    await store(administrator, [ended(created=900, completed_at=MARCH)], 0)
    found = await retention.preview(DOMAIN, ended_before=END)
    assert [(each.process_type, each.month, each.processes, each.steps) for each in found] == [
        ("order", "2026-03", 2, 3),
        ("order", "2026-04", 3, 9),
        ("refund", "2026-03", 1, 3),
    ]
    failed = await retention.preview(DOMAIN, ended_before=END, statuses=[ProcessStatus.FAILED], process_type="order")
    assert [(each.month, each.processes) for each in failed] == [("2026-04", 1)]
    assert await retention.preview(DOMAIN, ended_before=END, statuses=[]) == []
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(
        sum(each.processes for each in found), sum(each.steps for each in found), None
    )
    assert await retention.preview(DOMAIN, ended_before=END) == []


async def test_the_months_do_not_depend_on_the_session(
    retention: ProcessRetention, administrator: AsyncEngine, purger: AsyncEngine
) -> None:
    await store(administrator, [ended(created=900, completed_at=MARCH)])
    async with purger.connect() as conn:
        await conn.exec_driver_sql("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
        [found] = await retention.preview(DOMAIN, conn, ended_before=END)
        await conn.exec_driver_sql("RESET ALL")
        assert found.month == "2026-03"


async def test_the_bytes_are_those_of_the_rows(
    retention: ProcessRetention, administrator: AsyncEngine, database_url: str
) -> None:
    """Within a tenth of what the tables take up: what is small is in the row, what is large is stored beside it."""
    await store(administrator, [ended() for _ in range(400)], 5)
    execute(
        database_url,
        "UPDATE commandbus.process SET state = jsonb_build_object('blob', "
        "(SELECT string_agg(md5(process_id::text || n), '') FROM generate_series(1, 300) AS n))",
    )
    async with administrator.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("VACUUM FULL commandbus.process, commandbus.process_audit")
        sizes = (
            "SELECT sum(pg_table_size('commandbus.' || name)) FROM unnest('{process,process_audit}'::text[]) AS name"
        )
        stored = (await connection.exec_driver_sql(sizes)).scalar_one()
    [found] = await retention.preview(DOMAIN, ended_before=END)
    assert 0.9 < found.bytes / float(stored) < 1.1
