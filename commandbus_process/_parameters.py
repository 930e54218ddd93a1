"""Turn checked arguments into the parameters of statements."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from commandbus_process._arguments import STORED_NAME, check_key, check_loggable, checked, entry_columns, in_path
from commandbus_process._columns import JSON
from commandbus_process._json import json_array, json_row
from commandbus_process._stamps import matching_stamps
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata


def process_key(domain: str, process_id: UUID) -> dict[str, Any]:
    """Return the parameters that find a process."""
    check_key(domain, process_id)
    return {"key_domain": domain, "key_process_id": process_id}


def object_key(process: ProcessMetadata[Any]) -> dict[str, Any]:
    """Return the parameters that find the row that an object matches: its stamp or, without one, its version."""
    stamps = matching_stamps(process)
    return {
        **process_key(process.domain, process.process_id),
        "key_process_type": checked(STORED_NAME, "process_type", process.process_type),
        "key_version": None if stamps else process.version,
        "key_stamp": stamps[-1] if stamps else None,
    }


def step_key(domain: str, process_id: UUID, command_id: UUID) -> dict[str, Any]:
    """Return the parameters that find a step."""
    return {**process_key(domain, process_id), "key_command_id": command_id}


def sent_rows(entries: Sequence[ProcessAuditEntry]) -> list[dict[str, Any]]:
    """Return the columns of each command that is sent."""
    rows: list[dict[str, Any]] = []
    seen: set[UUID] = set()
    for position, entry in enumerate(entries):
        try:
            check_loggable(entry)
            rows.append(entry_columns(entry))
        except InvalidInputError as error:
            raise in_path(f"sent[{position}]", error) from error
        if entry.command_id in seen:
            raise InvalidInputError(f"sent[{position}].command_id", "is the same as in another entry of sent")
        seen.add(entry.command_id)
    return rows


def sent_parameters(entries: Sequence[ProcessAuditEntry]) -> dict[str, Any]:
    """Return the parameters of the commands that are sent: one as columns, several as rows of JSON."""
    rows = sent_rows(entries)
    if len(rows) == 1:
        return {f"sent_{name}": value for name, value in rows[0].items()}
    return {"sent": json_rows(dict(enumerate(rows))), "sent_count": len(rows)}


def json_rows(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """Return rows as a JSON array of objects, each with its number as `position`."""
    return json_array(json_row({"position": position, **row}, JSON) for position, row in rows.items())
