"""The URL of the database to migrate, in the form that makes SQLAlchemy use psycopg 3."""

import os

from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, pool
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError


def database_url(given: str | None = None, otherwise: str | None = None) -> URL:
    """Return the URL that was given or, without one, that of `DATABASE_URL`, and without that the other one.

    Raises:
        CommandError: There is none, or it is not one of PostgreSQL. The message does not quote it.
    """
    given = given or os.environ.get("DATABASE_URL") or otherwise
    if not given:
        raise CommandError(
            "no database is named: set DATABASE_URL=postgresql://user@host/database (the alembic command also takes "
            "-x url=…, and sqlalchemy.url in alembic.ini)"
        )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # The original error quotes the URL, which may contain a password.
        raise CommandError("the database URL cannot be parsed; write postgresql://user@host/database") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise CommandError(f"the database URL must begin with postgresql://, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def migrators_engine(given: str | None = None, otherwise: str | None = None) -> Engine:
    """Return an engine of its own for a migration, without a pool."""
    # SQLAlchemy looks for hstore when it connects, before the search path is pinned. No column here has that type.
    return create_engine(database_url(given, otherwise), poolclass=pool.NullPool, use_native_hstore=False)
