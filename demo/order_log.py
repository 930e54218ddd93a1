"""Generate an event log of orders. Some fail or are canceled, and are then compensated."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

ORDERS = 300
SEED = 20240531

_HEADER = (
    "case:concept:name",
    "concept:name",
    "time:timestamp",
    "lifecycle:transition",
    "org:resource",
    "case:customer",
    "case:total",
    "case:currency",
    "case:carrier",
)
_OPENING = datetime(2024, 3, 4, 7, 0, tzinfo=UTC)
_WEEKS_MINUTES = 3 * 7 * 24 * 60
_CUSTOMERS = ("Ahmed", "Bauer", "Costa", "Dubois", "Eriksson", "Fischer", "García", "Horvat", "Ivanova", "Jansen")
_CURRENCIES = ("EUR", "EUR", "EUR", "CHF", "SEK")
_CARRIERS = ("Blue Parcel", "Northern Post")


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    resource: str
    minutes: float
    """How many minutes it takes, before a random factor."""
    undo: str | None = None
    """The step that undoes it."""
    instead_of: str | None = None
    """The undo step that is not needed if this step is undone."""


_STEPS = (
    _Step("Check order", "shop", 2),
    _Step("Reserve stock", "warehouse", 6, undo="Release stock"),
    _Step("Authorise payment", "payments", 1.5, undo="Void authorisation"),
    _Step("Pack", "warehouse", 400, undo="Put back on the shelf"),
    _Step("Capture payment", "payments", 3, undo="Refund payment", instead_of="Void authorisation"),
    _Step("Ship", "dispatch", 300),
    _Step("Confirm delivery", "dispatch", 2400),
)
_UNDO_MINUTES = 45
_IN_ORDER = len(_STEPS)

# (percentage of the orders, the step at which the order stops, how that step ends)
_PATHS = (
    (72, _IN_ORDER, "complete"),
    (4, 0, "ate_abort"),  # nothing to undo: the order has failed
    (4, 1, "ate_abort"),
    (5, 2, "ate_abort"),
    (4, 4, "ate_abort"),
    (3, 5, "ate_abort"),
    (2, 0, "withdraw"),
    (3, 2, "withdraw"),
    (3, 3, "withdraw"),
)


def write_order_log(path: Path, orders: int = ORDERS, seed: int = SEED) -> None:
    """Write a log of that many orders as CSV. The same seed gives the same log."""
    random = Random(seed)  # noqa: S311 - invented data, no secret
    rows = [row for number in range(1, orders + 1) for row in _order(random, number)]
    rows.sort(key=lambda row: row[2])  # by time, so that the orders are interleaved as in a real log
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_HEADER)
        writer.writerows(rows)


def _order(random: Random, number: int) -> list[Sequence[str]]:
    order = f"order-{number:04}"
    customer = random.choice(_CUSTOMERS)
    total = f"{random.uniform(8, 420):.2f}"
    currency = random.choice(_CURRENCIES)
    carrier = random.choice(_CARRIERS)
    now = _OPENING + timedelta(minutes=random.uniform(0, _WEEKS_MINUTES))
    (_, ends_at, ending) = random.choices(_PATHS, weights=[path[0] for path in _PATHS])[0]
    rows: list[Sequence[str]] = []

    def happen(name: str, resource: str, minutes: float, transition: str = "complete") -> None:
        nonlocal now
        now += timedelta(minutes=minutes * random.uniform(0.4, 2.2))
        known_carrier = carrier if any(row[1] == "Pack" for row in rows) else ""  # chosen when the parcel is packed
        time = now.isoformat(timespec="milliseconds")
        rows.append((order, name, time, transition, resource, customer, total, currency, known_carrier))

    for step in _STEPS[:ends_at]:
        happen(step.name, step.resource, step.minutes)
    if ends_at < _IN_ORDER:
        stopped = _STEPS[ends_at]
        happen(stopped.name, stopped.resource, stopped.minutes, ending)
        needless = {step.instead_of for step in _STEPS[:ends_at]}
        for step in reversed(_STEPS[:ends_at]):
            if step.undo and step.undo not in needless:
                happen(step.undo, step.resource, _UNDO_MINUTES)
    return rows
