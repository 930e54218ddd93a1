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
    ProcessError,
    ProcessLockedError,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReadOnlyServerError,
    RecoveryConflictError,
    ReplyConflictError,
    ReplyOutcome,
    SchemaTooNewError,
    SchemaTooOldError,
    StateTooNewError,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StoredDataError,
    StoredStateError,
    TransactionConflictError,
)
from commandbus_process._refusals import raise_with_others

KEY = "orders", UUID(int=1)
RECORDED = ProcessAuditEntry(step_name="reserve", command_id=UUID(int=7), reply_outcome=ReplyOutcome.SUCCESS)
GIVEN = RECORDED.model_copy(update={"step_name": "charge", "reply_outcome": ReplyOutcome.FAILED})

DIFFERENT = ["step_name", "reply_outcome"]

ERRORS = [
    (ConcurrentUpdateError(*KEY, 3, 4), True, ["at version 3, the row at 4", "read it again"]),
    (ConcurrentUpdateError(*KEY, 3), True, ["roll it back and run it again"]),
    (DeadlockError(), True, ["40P01", "run the whole of it again"]),
    (TransactionConflictError("40001"), True, ["40001", "run the whole of it again"]),
    (RecoveryConflictError("40001"), True, ["40001", "recovery of a standby", "run the whole of it again"]),
    (RecoveryConflictError("40P01"), True, ["40P01", "recovery of a standby"]),
    (ReadOnlyServerError(), True, ["standby", "nothing was written", "target_session_attrs=read-write"]),
    (ProcessLockedError(*KEY), True, ["locked", "try again"]),
    (InvalidInputError("state", "contains NaN"), False, ["state: contains NaN"]),
    (NothingWrittenError(*KEY), False, ["trigger"]),
    (SchemaTooOldError("commandbus_0003", "commandbus_0005"), False, ["commandbus_0003", "migrations upgrade"]),
    (SchemaTooOldError(None, "commandbus_0005", schema="a b"), False, ["has no tables", "upgrade --schema 'a b'"]),
    (SchemaTooOldError(None, "commandbus_0005", missing="no column"), False, ["lacks", "no column"]),
    (SchemaTooNewError("commandbus_0009", "commandbus_0005"), False, ["commandbus_0009", "upgrade the library"]),
    (ProcessAlreadyExistsError(*KEY), False, ["exists already", "update()"]),
    (ProcessNotFoundError(*KEY), False, ["does not exist", "save()"]),
    (ProcessNotFoundError(*KEY, can_come=True), True, ["does not exist, or is not committed yet"]),
    (StepNotFoundError(*KEY, UUID(int=7)), True, [str(UUID(int=7)), "not logged, or not committed yet"]),
    (StepAlreadyLoggedError(*KEY, RECORDED, GIVEN, DIFFERENT), False, ["differ in step_name, reply_outcome"]),
    (
        StepAlreadyLoggedError(*KEY, RECORDED, RECORDED, []),
        False,
        ["the rest of its step is not there"],
    ),
    (ReplyConflictError(*KEY, RECORDED, GIVEN), False, ["SUCCESS", "outcome FAILED", "a person or a policy"]),
    (
        ReplyConflictError(*KEY, RECORDED, RECORDED, is_same=True),
        False,
        ["is the same", "the rest of its step is not"],
    ),
    (
        ReplyConflictError(*KEY, RECORDED, RECORDED.model_copy(update={"reply_data": {"a": 1}})),
        False,
        ["other data"],
    ),
    (StoredDataError(*KEY, "status: unknown"), False, ["status: unknown"]),
    (
        StateTooNewError(*KEY, "order", 3, 2),
        False,
        ["'order'", "at version 3", "no version above 2", "not overwritten"],
    ),
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


def test_without_a_difference_none_is_in_the_message() -> None:
    """`advance` of a step of which another part was in the way."""
    logged = StepAlreadyLoggedError(*KEY, RECORDED, RECORDED, [])
    replied = ReplyConflictError(*KEY, RECORDED, RECORDED, is_same=True)
    for error in (logged, replied):
        for told in ("differ", "another entry", "other data", "second", "a conflict; a person"):
            assert told not in str(error)


def test_an_error_about_one_process_has_no_others() -> None:
    for error, *_ in ERRORS:
        if isinstance(error, ProcessError):
            assert error.other_errors == ()


def test_an_error_of_many_items_keeps_the_others_on_its_way_to_another_process() -> None:
    others = (ProcessNotFoundError("refunds", UUID(int=2)), StepAlreadyLoggedError(*KEY, RECORDED, GIVEN, DIFFERENT))
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        raise_with_others([ProcessAlreadyExistsError(*KEY), *others])
    error = caught.value
    assert error.other_errors == others
    assert str(error) == f"{ProcessAlreadyExistsError(*KEY)} (and 2 more, in .other_errors)"
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(copied) is ProcessAlreadyExistsError
        assert str(copied) == str(error)
        assert [type(other) for other in copied.other_errors] == [ProcessNotFoundError, StepAlreadyLoggedError]
        assert [str(other) for other in copied.other_errors] == [str(other) for other in others]
        assert [vars(other) for other in copied.other_errors] == [vars(other) for other in others]
    assert ProcessAlreadyExistsError(*KEY).other_errors == ()


def test_a_single_error_is_raised_as_it_is() -> None:
    raise_with_others([])
    with pytest.raises(ProcessNotFoundError) as caught:
        raise_with_others([ProcessNotFoundError(*KEY)])
    assert (str(caught.value), caught.value.other_errors) == (str(ProcessNotFoundError(*KEY)), ())
