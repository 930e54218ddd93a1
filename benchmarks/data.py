"""The data that all sides work on, the same in every run, and what each call must answer or leave behind.

A row is a mapping from columns to plain values, in the columns that the databases of all sides have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

Columns: TypeAlias = dict[str, Any]
Rows: TypeAlias = tuple[list[Columns], list[Columns]]
"""Of the tables `process` and `process_audit`."""

CHANGED_COLUMNS = ("status", "current_step", "state", "error_code", "error_message", "completed_at")
PROCESS_COLUMNS = ("domain", "process_id", "process_type", *CHANGED_COLUMNS, "created_at", "updated_at")
REPLY_COLUMNS = ("reply_outcome", "reply_data", "received_at")
ENTRY_COLUMNS = ("step_name", "command_id", "command_type", "command_data", "sent_at", *REPLY_COLUMNS)
STEP_COLUMNS = ("domain", "process_id", *ENTRY_COLUMNS)

TRAIL_LENGTH = 20
LIST_STATUSES = ("WAITING_FOR_TSQ", "COMPENSATING", "IN_PROGRESS", "PENDING", "WAITING")  # one for each size of a list

_TRAILS = 50
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
_STEPS = ("reserve stock", "authorise payment", "book carrier", "print label", "send invoice")


@dataclass(frozen=True, slots=True)
class Target:
    """What one call works on.

    Attributes:
        process: As it is stored, or as it is to be saved.
        answer: What a reading call must return.
        changed: The process after an update.
        sent: The entry of its first step, without a reply.
        replied: The same entry, with its reply.
        following: The entry of the step after that.
    """

    process: Columns
    answer: object = None
    changed: Columns = field(default_factory=dict[str, Any])
    sent: Columns = field(default_factory=dict[str, Any])
    replied: Columns = field(default_factory=dict[str, Any])
    following: Columns = field(default_factory=dict[str, Any])

    @property
    def key(self) -> tuple[str, UUID]:
        return self.process["domain"], self.process["process_id"]

    def steps(self, *entries: Columns) -> list[Columns]:
        """Return entries as rows."""
        return [_step(self.process, entry) for entry in entries]


def reading_data(ended: int, list_sizes: Sequence[int]) -> tuple[Rows, dict[str, list[Target]]]:
    """Return rows that are only read, and by the name of the operation what it reads of them.

    Lists are found by a status that no others have, among processes that have ended.
    """
    random = Random("reading")
    processes = [_process(random, "reading", number, "COMPLETED") for number in range(ended)]
    targets = {"get_by_id": [Target(process, process) for process in processes]}
    for size, status in zip(list_sizes, LIST_STATUSES, strict=False):
        found = [_process(random, "reading", number, status) for number in range(size)]
        targets[f"find_by_status_{size}"] = [Target(found[0], found)]
        processes += found
    targets["get_audit_trail"], targets["get_completed_steps"] = [], []
    steps: list[Columns] = []
    for number in range(_TRAILS):
        process = _process(random, "reading", number, "COMPLETED")
        sent = [_entry(random, process, position) for position in range(TRAIL_LENGTH)]
        outcomes = ["FAILED" if position % 4 == 3 else "SUCCESS" for position in range(TRAIL_LENGTH - 1)]  # noqa: PLR2004
        trail = [_replied(random, entry, outcome) for entry, outcome in zip(sent, outcomes, strict=False)] + sent[-1:]
        completed = [entry["step_name"] for entry in trail if entry["reply_outcome"] == "SUCCESS"]
        targets["get_audit_trail"].append(Target(process, trail))
        targets["get_completed_steps"].append(Target(process, completed))
        processes.append(process)
        steps += [_step(process, entry) for entry in trail]
    return (processes, steps), targets


def writing_targets(domain: str, count: int, *, large_unchanged: bool = False) -> list[Target]:
    """Make targets of writing calls; with `large_unchanged` a state has 10 kB, and an update leaves it as it is."""
    random = Random(domain)
    targets: list[Target] = []
    for number in range(count):
        process = _process(random, domain, number, "WAITING")
        if large_unchanged:
            process["state"]["log"] = [f"{random.getrandbits(256):064x}" for _ in range(140)]
        sent, following = _entry(random, process, 0), _entry(random, process, 1)
        state = {**process["state"], "attempt": 0 if large_unchanged else 1}
        changed = {**process, "current_step": following["step_name"], "state": state}
        targets.append(Target(process, None, changed, sent, _replied(random, sent, "SUCCESS"), following))
    return targets


def bulk_data(processes: int, steps: int) -> Rows:
    """Make processes, and steps that are spread over them evenly."""
    random = Random("bulk")
    rows = [_process(random, "bulk", number, "WAITING") for number in range(processes)]
    return rows, [
        _step(process, _entry(random, process, position))
        for number, process in enumerate(rows)
        for position in range(steps // processes + (number < steps % processes))
    ]


def _uuid(random: Random) -> UUID:
    return UUID(int=random.getrandbits(128), version=4)


def _process(random: Random, domain: str, number: int, status: str) -> Columns:
    has_ended, created_at = status == "COMPLETED", _BEGINNING + timedelta(seconds=number)
    state: Columns = {
        "order_id": f"O-{random.randrange(10**8):08}",
        "customer": {"number": random.randrange(10**6), "name": f"Customer {number}", "country": "NL"},
        "items": [
            {"article": f"A-{random.randrange(10**6):06}", "quantity": random.randrange(1, 9), "price_in_cents": 1995}
            for _ in range(5)
        ],
        "flags": {"gift": False, "express": True, "invoice_by_post": number % 2 == 0},
        "note": None,
        "attempt": 0,
    }
    return {
        "domain": domain,
        "process_id": _uuid(random),
        "process_type": "order",
        "status": status,
        "current_step": None if has_ended else _STEPS[0],
        "state": state,
        "error_code": None,
        "error_message": None,
        "completed_at": created_at + timedelta(hours=1) if has_ended else None,
        "created_at": created_at,
        "updated_at": created_at + timedelta(minutes=5),
    }


def _entry(random: Random, process: Columns, position: int) -> Columns:
    return {
        "step_name": _STEPS[position % len(_STEPS)],
        "command_id": _uuid(random),
        "command_type": "OrderCommand",
        "command_data": {
            "order_id": process["state"]["order_id"],
            "article": f"A-{random.randrange(10**6):06}",
            "quantity": random.randrange(1, 9),
            "warehouse": {"code": "AMS-2", "aisle": random.randrange(40)},
            "reason": "The customer has confirmed the order and its payment terms.",
        },
        "sent_at": process["created_at"] + timedelta(minutes=position),
        **dict.fromkeys(REPLY_COLUMNS),
    }


def _replied(random: Random, entry: Columns, outcome: str) -> Columns:
    reply = {
        "reference": f"R-{random.randrange(10**8):08}",
        "handled_by": "worker-3",
        "lines": random.randrange(99),
        "remark": "Taken from the shelf",
    }
    received_at = entry["sent_at"] + timedelta(seconds=20)
    return {**entry, "reply_outcome": outcome, "reply_data": reply, "received_at": received_at}


def _step(process: Columns, entry: Columns) -> Columns:
    return {"domain": process["domain"], "process_id": process["process_id"], **entry}
