"""How the schema is made, changed and checked: from code, in a host's history, as SQL, and by the command line.

python -m commandbus_process.migrations --help
"""

from commandbus_process.migrations._checking import SchemaRevision, check_schema
from commandbus_process.migrations._comparing import differences
from commandbus_process.migrations._history import KNOWN as REVISIONS
from commandbus_process.migrations._history import alembic_config, location
from commandbus_process.migrations._host import LeaveOut, include_name, include_object
from commandbus_process.migrations._running import current, downgrade, migrate, sql, stamp, upgrade

__all__ = [
    "REVISIONS",
    "LeaveOut",
    "SchemaRevision",
    "alembic_config",
    "check_schema",
    "current",
    "differences",
    "downgrade",
    "include_name",
    "include_object",
    "location",
    "migrate",
    "sql",
    "stamp",
    "upgrade",
]
