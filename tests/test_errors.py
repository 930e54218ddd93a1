"""What an error carries: facts, a message, whether it can help to try again; and that it can be copied."""

import copy
import pickle
from uuid import UUID

import pytest

from commandbus_process import (
    ConcurrentUpdateError,
    DeadlockError,
    InvalidInputError,
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StoredDataError,
    StoredStateError,
    TransactionConflictError,
)

KEY = "orders", UUID(int=1)
RECORDED = ProcessAuditEntry(step_name="reserve", command_id=UUID(int=7), reply_outcome=ReplyOutcome.SUCCESS)
GIVEN = RECORDED.model_copy(update={"step_name": "charge", "reply_outcome": ReplyOutcome.FAILED})

ERRORS = [
    (ConcurrentUpdateError(*KEY, 3, 4), True, ["version 4, not 3", "read it again"]),
    (ConcurrentUpdateError(*KEY, 3), True, ["roll it back and run it again"]),
    (DeadlockError(), True, ["40P01", "run the whole of it again"]),
    (TransactionConflictError("40001"), True, ["40001", "run the whole of it again"]),
    (ProcessLockedError(*KEY), True, ["locked", "try again"]),
    (InvalidInputError("state", "contains NaN"), False, ["state: contains NaN"]),
    (NothingWrittenError(*KEY), False, ["trigger"]),
    (ProcessAlreadyExistsError(*KEY), False, ["exists already", "update()"]),
    (ProcessNotFoundError(*KEY), False, ["does not exist", "save()"]),
    (StepNotFoundError(*KEY, UUID(int=7)), False, [str(UUID(int=7)), "never logged"]),
    (StepAlreadyLoggedError(*KEY, RECORDED, GIVEN), False, ["differ in step_name, reply_outcome"]),
    (ReplyConflictError(*KEY, RECORDED, GIVEN), False, ["SUCCESS", "outcome FAILED"]),
    (
        ReplyConflictError(*KEY, RECORDED, RECORDED.model_copy(update={"reply_data": {"a": 1}})),
        False,
        ["other data"],
    ),
    (StoredDataError(*KEY, "status: unknown"), False, ["status: unknown"]),
    (
        StoredStateError(*KEY, "order", "OrderState", "total: missing"),
        False,
        ["'order'", "OrderState", "total: missing"],
    ),
]


@pytest.mark.parametrize(("error", "retryable", "told"), ERRORS, ids=lambda value: type(value).__name__)
def test_error(error: ProcessRepositoryError, retryable: bool, told: list[str]) -> None:  # noqa: FBT001 - a parameter
    assert error.retryable is retryable
    for part in told:
        assert part in str(error)
    if hasattr(error, "process_id"):
        assert str(UUID(int=1)) in str(error)
        assert "'orders'" in str(error)


@pytest.mark.parametrize("error", [error for error, *_ in ERRORS], ids=lambda value: type(value).__name__)
def test_an_error_survives_a_way_to_another_process(error: ProcessRepositoryError) -> None:
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own pickle
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)


def test_lookups_and_bad_values_are_the_built_in_errors_too() -> None:
    assert issubclass(ProcessNotFoundError, LookupError)
    assert issubclass(StepNotFoundError, LookupError)
    assert issubclass(InvalidInputError, ValueError)
