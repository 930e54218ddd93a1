"""Save many processes or log many entries in memory, all or none."""

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from commandbus_process._batches import (
    Batch,
    Prepared,
    Step,
    check_iterable,
    in_batches,
    prepare_process,
    prepare_step,
)
from commandbus_process._refusals import raise_with_others, why_not_logged
from commandbus_process._stamps import forget_row, set_stored
from commandbus_process.errors import ProcessAlreadyExistsError, ProcessError
from commandbus_process.models import ProcessMetadata, StateT
from commandbus_process.testing._store import InMemoryStore, found_for_entry, written

# The items may come from an asynchronous iterator, so other tasks can write between two batches. Nothing is visible to
# them before the last batch: it is staged in a store of its own, and written at the end if there still is no conflict.


async def save_many(
    store: InMemoryStore,
    processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
    state_columns: Callable[[ProcessMetadata[StateT]], Mapping[str, Any]],
    *,
    ahead: bool,
) -> int:
    """Insert new processes, and return how many were inserted."""
    check_iterable("processes", processes, "ProcessMetadata")
    staged: dict[tuple[str, UUID], dict[str, Any]] = {}

    def prepare(process: ProcessMetadata[StateT]) -> Prepared:
        return prepare_process(process, state_columns)

    async def stage(batch: Batch[ProcessMetadata[StateT]]) -> int:
        keys = [each.process for each in batch.prepared]
        _raise_taken(key for key in keys if key in staged or store.process(key) is not None)
        for process, prepared in zip(batch.items, batch.prepared, strict=True):
            row = staged[prepared.process] = store.new_row(prepared.row)
            forget_row(process)
            set_stored(process, written(row), is_committed=True)
        return len(keys)

    count = await in_batches("processes", processes, prepare, stage, ahead=ahead)
    _raise_taken(key for key in staged if store.process(key) is not None)
    for row in staged.values():
        store.insert_process(row)
    return count


def _raise_taken(keys: Iterable[tuple[str, UUID]]) -> None:
    raise_with_others(ProcessAlreadyExistsError(*key) for key in keys)


async def log_many(store: InMemoryStore, steps: Iterable[Step] | AsyncIterable[Step], *, ahead: bool) -> int:
    """Log entries, and return how many were new."""
    check_iterable("steps", steps, "(domain, process id, ProcessAuditEntry)")
    staged: list[tuple[Step, dict[str, Any]]] = []
    staging = InMemoryStore()

    async def stage(batch: Batch[Step]) -> int:
        given = [(step, dict(prepared.row)) for step, prepared in zip(batch.items, batch.prepared, strict=True)]
        raise_with_others(_why_not(_where(store, staging, step), step, row) for step, row in given)
        new = [(step, row) for step, row in given if not _is_logged(_where(store, staging, step), step)]
        for step, row in new:
            key = step[:2]
            if staging.process(key) is None:
                staging.insert_process(staging.new_row({"domain": key[0], "process_id": key[1], "updated_at": None}))
            staging.insert_step(key, row)
        staged.extend(new)
        return len(new)

    await in_batches("steps", steps, prepare_step, stage, ahead=ahead)
    raise_with_others(_why_not(store, step, row) for step, row in staged)
    count = 0
    for step, row in staged:
        if not _is_logged(store, step):
            store.insert_step(step[:2], row)
            count += 1
    return count


def _where(store: InMemoryStore, staging: InMemoryStore, step: Step) -> InMemoryStore:
    """Return the store that has the step, if one of them has it."""
    return staging if _is_logged(staging, step) else store


def _is_logged(store: InMemoryStore, step: Step) -> bool:
    return store.step(step[:2], step[2].command_id) is not None


def _why_not(store: InMemoryStore, step: Step, row: dict[str, Any]) -> ProcessError | None:
    found = found_for_entry(store, step[:2], row)
    if found is not None and found["same"]:
        return None
    return why_not_logged(*step[:2], found, step[2])
