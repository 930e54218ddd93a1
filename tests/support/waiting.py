"""Waiting for what another session does, instead of sleeping."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


async def is_waiting_for_a_lock(administrator: AsyncEngine, sessions: int = 1) -> None:
    """Return once this many sessions of the database wait for a lock. An application's role cannot see that."""
    async with asyncio.timeout(30), administrator.connect() as connection:
        while (await connection.execute(_WAITING)).scalar_one() < sessions:
            await connection.rollback()  # within a transaction, the view stays the same


async def waiting_sessions(administrator: AsyncEngine) -> int:
    """The number of sessions of this database that wait for a lock."""
    async with administrator.connect() as connection:
        return int((await connection.execute(_WAITING)).scalar_one())
