"""The same random operations on both repositories: they return, raise, store and set the same."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast
from uuid import UUID, uuid4

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule, run_state_machine_as_test
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRepository,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyOutcome,
    StepReply,
)
from commandbus_process.testing import InMemoryProcessRepository
from tests.support.databases import async_url

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMES = [NOON + timedelta(hours=hours) for hours in range(3)]
EXAMPLES = 30  # of up to 30 operations each: 10 s, or 25 s on a busy machine
Repository = ProcessRepository[JsonObject]

# Few of each, so that they meet.
process_ids = st.sampled_from([UUID(int=number) for number in range(1, 4)])
command_ids = st.sampled_from([UUID(int=number) for number in range(11, 15)])
times = st.sampled_from(TIMES)
objects = st.sampled_from(
    [
        {},
        {"n": 1},
        {"n": 1.0},
        {"n": True},
        {"n": -0.0},
        {"n": 0},
        {"bb": 1, "a": [1e-7, {"é": None, "ab": "\n"}], "c": 10**30},
        {"n": float("nan")},
        {"n": 1e16},
    ]
)
data = st.none() | objects
statuses = st.sampled_from([ProcessStatus.PENDING, ProcessStatus.WAITING_FOR_REPLY, ProcessStatus.FAILED])
outcomes = st.sampled_from([ReplyOutcome.SUCCESS, ReplyOutcome.FAILED])


def reply_of(command_id: UUID, outcome: ReplyOutcome, of: JsonObject | None, at: datetime | None) -> StepReply:
    """A reply with data that it would not take itself, too."""
    return StepReply(command_id, outcome, None, at).model_copy(update={"data": of})


replies = st.builds(reply_of, command_ids, outcomes, data, st.none() | times)


def entry(**changes: Any) -> ProcessAuditEntry:
    """An entry with values that it would not take itself, too."""
    return ProcessAuditEntry(step_name="s", command_id=uuid4()).model_copy(update=changes)


entries = st.builds(
    entry,
    step_name=st.sampled_from(["reserve", "charge"]),
    command_id=command_ids,
    command_type=st.sampled_from(["Do", "Do", "Do", ""]),
    command_data=data,
    sent_at=times,
    compensates=st.none() | command_ids,
)


def answer(
    given: ProcessAuditEntry, outcome: ReplyOutcome, of: JsonObject | None, at: datetime | None
) -> ProcessAuditEntry:
    return given.model_copy(update={"reply_outcome": outcome, "reply_data": of, "received_at": at})


answered_entries = st.builds(answer, entries, outcomes, data, st.none() | times)
any_entries = entries | answered_entries
several = st.lists(any_entries, max_size=3)


def is_given(time: datetime) -> bool:
    return time in TIMES


def plain(value: object) -> object:
    """What is compared: everything but the moment at which a repository wrote."""
    if isinstance(value, datetime):
        return value if is_given(value) else "now"
    if isinstance(value, BaseModel):
        fields = {name: plain(each) for name, each in vars(value).items()}
        return type(value).__name__, fields, sorted(value.model_fields_set)
    if isinstance(value, dict):  # in its order, and with the types of numbers
        return [(plain(key), plain(each)) for key, each in cast("dict[object, object]", value).items()]
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast("list[object]", value)]
    if isinstance(value, ProcessRepositoryError):
        message = re.sub(r"\d{4}-\d\d-\d\d [\d:.]+\+00:00", "TIME", str(value))
        return type(value).__name__, message, value.retryable, plain(vars(value))
    return json.dumps(value, default=str), type(value).__name__


Pair = tuple[ProcessMetadata, ProcessMetadata]


class BothRepositories(RuleBasedStateMachine):
    """Each rule calls both, and compares. An object is a pair: one for each repository."""

    runner: ClassVar[asyncio.Runner]
    postgres: ClassVar[Repository]
    pairs: Bundle[Pair] = Bundle("pairs")

    def __init__(self) -> None:
        super().__init__()
        self.domain = str(uuid4())  # so that the runs do not see each other
        self.memory: Repository = InMemoryProcessRepository()

    def both(self, call: Callable[[Repository, int], Awaitable[Any]], *pairs: Pair) -> tuple[Any, Any]:
        """Call both, and return what they return. An error counts as returned."""
        results = [
            self.runner.run(self.outcome(call, repository, number))
            for number, repository in enumerate((self.postgres, self.memory))
        ]
        postgres, memory = results
        assert plain(memory) == plain(postgres)
        for one, other in pairs:
            assert plain(one) == plain(other)
        return postgres, memory

    async def outcome(self, call: Callable[[Repository, int], Awaitable[Any]], repository: Repository, at: int) -> Any:
        try:
            return await call(repository, at)
        except ProcessRepositoryError as error:
            return error

    @rule(
        target=pairs, process_id=process_ids, state=objects, status=statuses, created_at=times,
        deadline=st.none() | times, process_type=st.sampled_from(["order", "order", "refund"]),
    )  # fmt: skip
    def new(self, **fields: Any) -> Pair:
        valid = ProcessMetadata[JsonObject](
            domain=self.domain, process_id=fields["process_id"], process_type="order", state={}, updated_at=NOON
        )
        one, other = (valid.model_copy(deep=True, update=fields) for _ in range(2))
        return one, other

    @rule(pair=pairs, status=statuses, state=objects, completed_at=st.none() | times)
    def change(self, pair: Pair, status: ProcessStatus, state: JsonObject, completed_at: datetime | None) -> None:
        for each in pair:
            each.status, each.completed_at = status, completed_at
            vars(each)["state"] = state  # an assignment would refuse some of them

    @rule(pair=pairs, version=st.none() | st.integers(1, 4))
    def set_version(self, pair: Pair, version: int | None) -> None:
        for each in pair:
            each.version = version

    @rule(target=pairs, pair=pairs)
    def copy(self, pair: Pair) -> Pair:
        one, other = pair
        return one.model_copy(deep=True), other.model_copy(deep=True)

    @rule(pair=pairs, sent=several)
    def save(self, pair: Pair, sent: list[ProcessAuditEntry]) -> None:
        self.both(lambda repository, at: repository.save(pair[at], sent=sent), pair)

    @rule(pair=pairs)
    def update(self, pair: Pair) -> None:
        self.both(lambda repository, at: repository.update(pair[at]), pair)

    @rule(pair=pairs, reply=st.none() | replies | any_entries, sent=several)
    def advance(self, pair: Pair, reply: StepReply | ProcessAuditEntry | None, sent: list[ProcessAuditEntry]) -> None:
        self.both(lambda repository, at: repository.advance(pair[at], reply=reply, sent=sent), pair)

    @rule(pair=pairs, reply=st.none() | replies, sent=several)
    def advance_twice(self, pair: Pair, reply: StepReply | None, sent: list[ProcessAuditEntry]) -> None:
        again = (pair[0].model_copy(deep=True), pair[1].model_copy(deep=True))
        for each in (pair, again, pair):
            self.advance(each, reply, sent)

    @rule(process_id=process_ids, given=any_entries)
    def log_step(self, process_id: UUID, given: ProcessAuditEntry) -> None:
        self.both(lambda repository, _: repository.log_step(self.domain, process_id, given))

    @rule(process_id=process_ids, reply=replies | answered_entries)
    def update_step_reply(self, process_id: UUID, reply: StepReply | ProcessAuditEntry) -> None:
        self.both(lambda repository, _: repository.update_step_reply(self.domain, process_id, reply.command_id, reply))

    @rule(chosen=st.lists(pairs, max_size=3))
    def save_many(self, chosen: list[Pair]) -> None:
        self.both(lambda repository, at: repository.save_many([pair[at] for pair in chosen]), *chosen)

    @rule(steps=st.lists(st.tuples(process_ids, any_entries), max_size=4))
    def log_many(self, steps: list[tuple[UUID, ProcessAuditEntry]]) -> None:
        self.both(lambda repository, _: repository.log_many([(self.domain, *step) for step in steps]))

    @rule(target=pairs, process_id=process_ids)
    def get_by_id(self, process_id: UUID) -> Any:
        found: Any = self.both(lambda repository, _: repository.get_by_id(self.domain, process_id))
        return cast("Any", multiple()) if found[0] is None else found

    @rule(ids=st.lists(process_ids, max_size=3))
    def get_by_ids(self, ids: list[UUID]) -> None:
        self.both(lambda repository, _: repository.get_by_ids(self.domain, ids))

    @rule(
        wanted=st.lists(statuses, max_size=3), limit=st.none() | st.integers(0, 3),
        process_type=st.none() | st.sampled_from(["order", "refund", ""]),
    )  # fmt: skip
    def find_by_status(self, wanted: list[ProcessStatus], limit: int | None, process_type: str | None) -> None:
        self.both(
            lambda repository, _: repository.find_by_status(self.domain, wanted, limit=limit, process_type=process_type)
        )

    @rule(process_id=process_ids, include_unknown=st.booleans())
    def read_steps(self, process_id: UUID, *, include_unknown: bool) -> None:
        key = self.domain, process_id
        self.both(lambda repository, _: repository.get_audit_trail(*key))
        self.both(lambda repository, _: repository.get_completed_steps(*key))
        self.both(lambda repository, _: repository.get_steps_to_compensate(*key, include_unknown=include_unknown))

    def teardown(self) -> None:
        self.find_by_status(list(ProcessStatus), None, None)
        for number in range(1, 4):
            self.read_steps(UUID(int=number), include_unknown=True)


def test_random_operations_do_the_same_on_both(shared_url: str) -> None:
    engine = create_async_engine(async_url(shared_url), pool_size=1, max_overflow=0)
    with asyncio.Runner() as runner:
        BothRepositories.runner = runner
        BothRepositories.postgres = PostgresProcessRepository(engine)
        try:
            run_state_machine_as_test(
                BothRepositories,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=30,
                    deadline=None,
                    database=None,
                    report_multiple_bugs=False,
                    phases=[Phase.generate],  # what fails is short anyway, and shrinking takes minutes
                    derandomize=True,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                ),
            )
        finally:
            runner.run(engine.dispose())
