"""All statements of the library, by their names."""

from sqlalchemy import ClauseElement, Insert, Select, Update

from commandbus_process.postgres import _advance, _bulk, _claiming, _retention, _statements

STATEMENTS: dict[str, ClauseElement] = {
    name: value
    for module in (_statements, _advance, _bulk, _claiming, _retention)
    for name, value in vars(module).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, Select | Insert | Update)
}
"""Those that are built once. `_listing` builds the others by what is given."""
