"""What was written, to be compared with what is in the database afterwards.

Every write carries a token of its own into each place that it touches: the list of moves in the state of the process,
the command that it logs, the reply that it records. So a write that is there in part shows, whoever else wrote too.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import class_row

from commandbus_process import JsonObject, ProcessAuditEntry, ReplyOutcome


class Place(Enum):
    """Where a write leaves its token."""

    STATE = auto()
    STEP = auto()
    REPLY = auto()


class Kind(StrEnum):
    """What a worker does. Some are a transaction on a connection of its own, the others single calls."""

    START = "start a process"
    HANDLE_REPLY = "handle a reply"
    SAVE = "save"
    UPDATE = "update"
    LOG_STEP = "log_step"
    RECORD_REPLY = "update_step_reply"
    TAKE_STEP = "advance, delivered twice"
    RETRY = "update, rolled back, and again"
    LOCK = "lock and advance"
    CLAIM = "claim and advance"


PLACES = {
    Kind.START: frozenset({Place.STATE, Place.STEP}),
    Kind.HANDLE_REPLY: frozenset({Place.STATE, Place.STEP, Place.REPLY}),
    Kind.SAVE: frozenset({Place.STATE}),
    Kind.UPDATE: frozenset({Place.STATE}),
    Kind.LOG_STEP: frozenset({Place.STEP}),
    Kind.RECORD_REPLY: frozenset({Place.REPLY}),
    Kind.TAKE_STEP: frozenset({Place.STATE, Place.STEP, Place.REPLY}),
    Kind.RETRY: frozenset({Place.STATE}),
    Kind.LOCK: frozenset({Place.STATE}),
    Kind.CLAIM: frozenset({Place.STATE}),
}


class Outcome(Enum):
    """What the worker knows of its write."""

    UNKNOWN = auto()
    """No answer came: it is there whole, or not at all."""
    ACKNOWLEDGED = auto()
    REFUSED = auto()
    """Somebody else was first: nothing of it is there."""


@dataclass
class Write:
    """One write, of a process, that was begun."""

    kind: Kind
    process_id: UUID
    token: UUID = field(default_factory=uuid4)
    outcome: Outcome = Outcome.UNKNOWN


@dataclass
class Ledger:
    """All the writes that were begun in one domain, which nobody else writes to."""

    domain: str = field(default_factory=lambda: f"faults-{uuid4()}")
    writes: dict[UUID, Write] = field(default_factory=dict[UUID, Write])

    def begin(self, kind: Kind, process_id: UUID) -> Write:
        """Note a write, before anything of it happens."""
        write = Write(kind, process_id)
        self.writes[write.token] = write
        return write

    def count(self, outcome: Outcome) -> int:
        return sum(write.outcome is outcome for write in self.writes.values())


def step(token: UUID) -> ProcessAuditEntry:
    """The step that the write with this token logs."""
    return ProcessAuditEntry(
        step_name=f"step {token.hex[:4]}", command_id=token, command_type="Move", command_data=_data(token)
    )


def reply(token: UUID) -> ProcessAuditEntry:
    """The reply that the write with this token records."""
    outcome = list(ReplyOutcome)[token.int % len(ReplyOutcome)]
    return ProcessAuditEntry(step_name="any", command_id=token, reply_outcome=outcome, reply_data=_data(token))


def _data(token: UUID) -> JsonObject:
    return {"token": str(token), "content": token.hex * 8}


@dataclass
class Verdict:
    """What became of the writes, counted."""

    kept: int = 0
    """Not a fault: writes of unknown outcome that are there."""
    absent: int = 0
    """Not a fault: writes of unknown outcome that are not there."""
    lost: int = 0
    """Acknowledged writes that are not there, or not all of them."""
    torn: int = 0
    """Writes of which a part is there and a part is not."""
    repeated: int = 0
    """Writes that are there more than once in a place."""
    changed: int = 0
    """Steps and replies that are not what was written."""
    unwanted: int = 0
    """Writes that are there although the repository refused them, or that nobody made."""
    misnumbered: int = 0
    """Processes whose version is not the number of moves in their state, or whose current step is not the last."""

    @property
    def faults(self) -> int:
        return self.lost + self.torn + self.repeated + self.changed + self.unwanted + self.misnumbered

    def __str__(self) -> str:
        others = self.repeated + self.changed + self.unwanted + self.misnumbered
        return f"{self.lost} lost, {self.torn} torn, {others} otherwise wrong"


@dataclass
class _Process:
    process_id: UUID
    version: int
    current_step: str
    moves: list[UUID]


@dataclass
class _Step:
    process_id: UUID
    command_id: UUID
    step_name: str
    command_type: str
    command_data: JsonObject
    reply_outcome: str | None
    reply_data: JsonObject | None


# Read without the repository: what verifies it must not share its mistakes.
_PROCESSES = """
    SELECT process_id, version, current_step, ARRAY(SELECT jsonb_array_elements_text(state -> 'moves'))::uuid[] AS moves
    FROM commandbus.process WHERE domain = %s
"""
_STEPS = """
    SELECT process_id, command_id, step_name, command_type, command_data, reply_outcome, reply_data
    FROM commandbus.process_audit WHERE domain = %s
"""


def verify(url: str, ledger: Ledger) -> Verdict:
    """Hold what is in the database against the ledger.

    Args:
        url: Where to read.
        ledger: What was written; all of it has ended.
    """
    with psycopg.connect(url) as connection:
        processes = connection.cursor(row_factory=class_row(_Process)).execute(_PROCESSES, [ledger.domain]).fetchall()
        steps = connection.cursor(row_factory=class_row(_Step)).execute(_STEPS, [ledger.domain]).fetchall()
    verdict = Verdict()
    # By token: where it was found, in which process, and how often.
    found: dict[UUID, Counter[tuple[Place, UUID]]] = {}

    def find(place: Place, process_id: UUID, token: UUID) -> None:
        found.setdefault(token, Counter())[place, process_id] += 1

    for process in processes:
        for token in process.moves:
            find(Place.STATE, process.process_id, token)
        if process.version != len(process.moves) or process.current_step != str(process.moves[-1]):
            verdict.misnumbered += 1
    for row in steps:
        find(Place.STEP, row.process_id, row.command_id)
        sent = step(row.command_id)
        if (row.step_name, row.command_type, row.command_data) != (sent.step_name, "Move", sent.command_data):
            verdict.changed += 1
        if row.reply_data is not None:
            token = UUID(str(row.reply_data["token"]))
            find(Place.REPLY, row.process_id, token)
            received = reply(token)
            if (row.reply_outcome, row.reply_data) != (received.reply_outcome, received.reply_data):
                verdict.changed += 1

    verdict.unwanted += len(found.keys() - ledger.writes.keys())
    for write in ledger.writes.values():
        _judge(write, found.get(write.token, Counter()), verdict)
    return verdict


def _judge(write: Write, found: Counter[tuple[Place, UUID]], verdict: Verdict) -> None:
    wanted = {(place, write.process_id) for place in PLACES[write.kind]}
    if write.outcome is Outcome.ACKNOWLEDGED and not wanted <= found.keys():
        verdict.lost += 1
    if found and found.keys() != wanted:
        verdict.torn += 1
    if write.outcome is Outcome.UNKNOWN and found:
        verdict.kept += 1
    elif write.outcome is Outcome.UNKNOWN:
        verdict.absent += 1
    if write.outcome is Outcome.REFUSED and found:
        verdict.unwanted += 1
    if any(times > 1 for times in found.values()):
        verdict.repeated += 1
