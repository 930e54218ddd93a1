"""Imports point one way: from what a caller reads, through the shared rooms, to PostgreSQL."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import commandbus_process

PACKAGE = Path(commandbus_process.__file__).parent
SHARED = (
    "_columns _arguments _json _reasons _schema_name _scripts _log "
    "_states _state_types _state_versions _state_difference "
    "_stamps _parameters _checked_rows _refusals _batches"
)
# A module may import those of the floors below its own, and its neighbours.
FLOORS = [
    {"models", "errors"},
    {"repository", "filters", "summaries", "tables"},
    set(SHARED.split()),
    {"grants", "guards", "migrations", "postgres"},
    {"retention", "states"},
    {"testing"},
    {"__init__"},
]
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if "_migrations" not in path.parts
}


def floor(module: str) -> int:
    room = module.split(".", maxsplit=1)[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports when it is loaded."""
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:  # not those for type checkers only
        for name in _imported(node):
            inside = name.removeprefix("commandbus_process.")
            if inside != name:
                yield inside if inside in MODULES else f"{inside}.__init__"


def _imported(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            is_module = full.removeprefix("commandbus_process.") in MODULES
            yield full if is_module else f"{node.module}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_floor_above_its_own(module: str) -> None:
    assert [other for other in imports(module) if floor(other) > floor(module)] == []


# What a door beside the repository may use of the inside of `postgres/`.
INSIDE = {"retention": {"_database", "_listing", "_reading", "_retention", "_statements", "_transaction"}}


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("postgres.")])
def test_nothing_outside_imports_the_inside_of_postgres(module: str) -> None:
    inside = {other for other in imports(module) if other.startswith("postgres.")}
    allowed = {"__init__", *INSIDE.get(module, ())}
    assert inside <= {f"postgres.{room}" for room in allowed}


def test_the_shared_rooms_know_no_sql_expressions() -> None:
    for module in SHARED.split():
        assert "sqlalchemy" not in MODULES[module].read_text() or module == "_columns"


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"{' imports '.join((*path, module))}"
        if module not in done:
            for other in imports(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)
