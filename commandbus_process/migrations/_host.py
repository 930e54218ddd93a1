"""What a host's Alembic leaves out, so that it offers neither to drop nor to make the tables of this library."""

from typing import Any

from commandbus_process._schema_name import checked_schema
from commandbus_process.tables import SCHEMA, VERSION_TABLE, metadata

_COLUMNS = {table.name: {"domain", "process_id"} for table in metadata.tables.values()} | {
    VERSION_TABLE: {"version_num"}
}
"""The tables, and some columns by which they are told from a host's tables of the same name."""


class LeaveOut:
    """The two filters for `context.configure` in a host's `env.py`. Use both.

    Args:
        schema: The schema that has the tables.
    """

    def __init__(self, schema: str = SCHEMA) -> None:
        self._schema = checked_schema(schema)

    def include_name(self, name: str | None, type_: str, parent_names: Any) -> bool:  # noqa: ANN401 - Alembic's mapping
        """Whether Alembic looks at what has this name. It does not look at our schema's tables."""
        if type_ != "table" or parent_names.get("schema_name") != self._schema:
            return True
        return name not in _COLUMNS

    def include_object(self, object_: Any, name: str | None, type_: str, reflected: bool, compare_to: object) -> bool:  # noqa: ANN401, FBT001 - Alembic's
        """Whether Alembic compares an object.

        It compares no table of ours, be it in the database or in the host's metadata, for a foreign key to `process`.
        If our schema is the first of the search path, Alembic finds our tables without a schema. Then they are known by
        their columns, and left out unless the host declares a table of this name itself.
        """
        if type_ != "table" or name not in _COLUMNS:
            return True
        if object_.schema == self._schema:
            return False
        is_unknown = reflected and compare_to is None and object_.schema is None
        return not (is_unknown and _COLUMNS[name] <= set(object_.columns.keys()))


_of_default = LeaveOut()
include_name = _of_default.include_name
"""The filter for the schema `commandbus`. For another one: `LeaveOut("its name").include_name`."""
include_object = _of_default.include_object
"""The filter for the schema `commandbus`. For another one: `LeaveOut("its name").include_object`."""
