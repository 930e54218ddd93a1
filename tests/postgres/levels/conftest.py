"""Every test in this folder runs on each server and isolation level, and behind PgBouncer."""

from tests.support.places import application_url, engine, isolation_level, place, server

__all__ = ["application_url", "engine", "isolation_level", "place", "server"]
