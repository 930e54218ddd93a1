"""What a run left behind, and how two runs differ."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any, TypeAlias, cast
from uuid import UUID

from pydantic import TypeAdapter
from typing_extensions import override

from commandbus_process.models import ProcessAuditEntry, ProcessMetadata
from commandbus_process.repository import ProcessRepository

Key: TypeAlias = tuple[str, UUID]
End: TypeAlias = dict[Key, tuple[ProcessMetadata[Any], list[ProcessAuditEntry]]]
"""What is stored of each process that the handler has named: the process, and its trail."""

_SET_ANEW = frozenset({"process_id", "version", "created_at", "updated_at"})
_TIMES = (datetime, date, time, timedelta)


class _Nothing:
    @override
    def __repr__(self) -> str:
        return "missing"


_MISSING = _Nothing()


async def read_end(repository: ProcessRepository[Any], keys: Iterable[Key]) -> End:
    """Return what is stored of these processes. Those that do not exist are left out."""
    end: End = {}
    for key in keys:
        process = await repository.get_by_id(*key)
        if process is not None:
            end[key] = process, await repository.get_audit_trail(*key)
    return end


def differences(expected: End, found: End, ignore: Collection[str]) -> Iterator[str]:
    """Yield how the end of a run differs from the one that was expected."""
    if len(expected) != len(found):
        yield f"{_count(found)} stored, and {len(expected)} without the fault"
        return
    # Ids that a handler makes anew in each run are compared by their order.
    keys = list(zip(expected, expected if expected.keys() == found.keys() else found, strict=True))
    for key, found_key in keys:
        yield from _of_process(f"process {found_key[1]}", expected[key], found[found_key], ignore)


def _count(end: End) -> str:
    return "1 process is" if len(end) == 1 else f"{len(end)} processes are"


def _of_process(
    name: str,
    expected: tuple[ProcessMetadata[Any], list[ProcessAuditEntry]],
    found: tuple[ProcessMetadata[Any], list[ProcessAuditEntry]],
    ignore: Collection[str],
) -> Iterator[str]:
    yield from _of_fields(f"{name}: ", _process_fields(expected[0]), _process_fields(found[0]), ignore)
    trails = _trail_fields(expected[1]), _trail_fields(found[1])
    if len(trails[0]) != len(trails[1]):
        sent = ", ".join(entry.step_name for entry in found[1])
        yield f"{name}: {len(found[1])} commands are in the trail ({sent}), and {len(expected[1])} without the fault"
        return
    for number, (one, other) in enumerate(zip(*trails, strict=True)):
        of_command = f"{name}: command {number + 1} ({found[1][number].step_name}): "
        yield from _of_fields(of_command, one, other, ignore)


def _of_fields(
    name: str, expected: Mapping[str, object], found: Mapping[str, object], ignore: Collection[str]
) -> Iterator[str]:
    for field in dict.fromkeys((*expected, *found)):
        one, other = expected.get(field, _MISSING), found.get(field, _MISSING)
        is_ignored = any(field == each or field.startswith(f"{each}.") for each in ignore)
        if not is_ignored and (one != other or type(one) is not type(other)):
            yield f"{name}{field} is {other!r}, and {one!r} without the fault"


def _process_fields(process: ProcessMetadata[Any]) -> dict[str, object]:
    fields = {name: value for name, value in vars(process).items() if name not in _SET_ANEW}
    state: Any = fields.pop("state")
    adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", type(state)))
    return dict(_flat("", {**fields, "state": adapter.dump_python(state)}))


def _trail_fields(trail: list[ProcessAuditEntry]) -> list[dict[str, object]]:
    # Entries of one moment keep the order of logging. Ids are replaced by their places, since a handler may make them
    # anew in each run. What matters is how many there are, and which one a compensation is for.
    places = {entry.command_id: f"command {number + 1}" for number, entry in enumerate(trail)}

    def placed(field: object) -> object:
        return places.get(field, field) if isinstance(field, UUID) else field

    return [dict(_flat("", {name: placed(value) for name, value in vars(entry).items()})) for entry in trail]


def _flat(path: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the values inside a value, with their paths: `state.items.0.price`."""
    inside: Iterable[tuple[object, object]] | None = None
    if isinstance(value, Mapping):
        inside = cast("Mapping[object, object]", value).items()
    elif isinstance(value, list | tuple):
        inside = enumerate(cast("Iterable[object]", value))
    if inside is not None:
        for key, each in inside:
            yield from _flat(f"{path}.{key}" if path else str(key), each)
    elif isinstance(value, _TIMES):
        yield path, "a time"  # a redelivery comes later
    else:
        yield path, value
