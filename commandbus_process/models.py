"""The models that the repository takes and returns: a process, an entry of its audit trail, and a reply."""

from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, LiteralString, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    PrivateAttr,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from typing_extensions import TypeVar, override

JsonObject: TypeAlias = dict[str, JsonValue]
"""A JSON object: the state of a process whose repository has no `state_type`."""

StateT = TypeVar("StateT", default=JsonObject)


class ProcessStatus(StrEnum):
    """The status of a process. The value is what is stored."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    WAITING_FOR_REPLY = "WAITING"
    WAITING_FOR_TSQ = "WAITING_FOR_TSQ"
    """The command is in the troubleshooting queue: a person has to decide."""
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def is_terminal(self) -> bool:
        """Whether the process has ended: completed, compensated, failed or canceled."""
        return self in TERMINAL


TERMINAL = frozenset({ProcessStatus.COMPLETED, ProcessStatus.COMPENSATED, ProcessStatus.FAILED, ProcessStatus.CANCELED})
"""The statuses of processes that have ended."""


class ReplyOutcome(StrEnum):
    """How a command ended. The value is what is stored."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


MESSAGES: dict[str, LiteralString] = {
    "storable_text": "must not contain a NUL character or a lone surrogate, which PostgreSQL cannot store",
    "storable_time": "must lie in the years 1 to 9999 in UTC",
}
"""The messages of the error types that these models add. No other type's message is shown: it may contain data."""


class _Storable:
    """Rejects strings that PostgreSQL `text` cannot store. A regex, so that it runs inside Pydantic's core."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        storable = core_schema.custom_error_schema(
            core_schema.str_schema(pattern=r"^[^\x00]*$"),
            custom_error_type="storable_text",
            custom_error_message=MESSAGES["storable_text"],
        )
        return core_schema.chain_schema([handler(source), storable])


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError("storable_time", MESSAGES["storable_time"]) from error


StorableText = Annotated[str, _Storable()]
OptionalName = Annotated[str, Field(max_length=255), _Storable()]
Name = Annotated[str, Field(min_length=1, max_length=255), _Storable()]
UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Version = Annotated[int, Field(ge=1, le=2**63 - 1)]


def _now() -> datetime:
    return datetime.now(UTC)


class _Model(BaseModel):
    # Assignments are checked like arguments. A misspelt field is an error. NaN and infinity are not JSON. Errors name
    # the place and the reason, and never quote a state or a payload.
    model_config = ConfigDict(validate_assignment=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class RowStamps(tuple[str, ...]):
    """The rows that an object has matched since it was read, newest last. Used by the repository only.

    They are not part of the object's value, so any two compare equal.
    """

    __slots__ = ()

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowStamps)

    @override
    def __hash__(self) -> int:
        return 0


STAMPS = "_stamps"
"""The name of the private attribute that holds a process's `RowStamps`."""
_STAMP_WITHOUT_STATE_VERSION = 3  # parts: the version of the state is the fourth, if the row has one


class ProcessWithoutState(_Model):
    """The fields of a process that lists and processes have in common: all but the state and the version."""

    domain: Name
    process_id: UUID
    process_type: Name
    status: ProcessStatus = ProcessStatus.PENDING
    current_step: OptionalName | None = None
    business_key: OptionalName | None = None
    """What people call the process: an order number, for example. Set by `save`, and never changed."""
    deadline: UtcDatetime | None = None
    """When somebody must look at the process if nothing has come. The library itself does nothing then."""
    error_code: OptionalName | None = None
    error_message: StorableText | None = None
    created_at: UtcDatetime = Field(default_factory=_now)
    updated_at: UtcDatetime = Field(default_factory=_now)
    completed_at: UtcDatetime | None = None


class ProcessMetadata(ProcessWithoutState, Generic[StateT]):
    """One process and its state.

    Mutable: assign to its fields, and pass it to `update` or `advance`. Assigning a wrong type raises
    `pydantic.ValidationError` (a `ValueError`) and changes nothing. Times must be timezone-aware, and are kept in UTC.

    Write `ProcessMetadata[OrderState](...)` to have the state checked against its type at once. Without a parameter,
    the state can be a JSON object, a Pydantic model or a dataclass. The repository checks it against its `state_type`
    when you save it.
    """

    _stamps: RowStamps = PrivateAttr(default=RowStamps())

    state: StateT
    version: Version | None = None
    """Version of the row when this object was last read or written. `None`: never; `update()` then skips the check.

    An object that was read or written also remembers privately which row that was. Its copies and pickles do, too. If
    you set a version by hand, only that version is compared.
    """

    @property
    def state_version(self) -> int | None:
        """Version of the state in the row that this object matches, as it is stored there; `None`: it matches none.

        A repository with `StateVersions` may have read the state from an older version, which the row still has.
        """
        stamps = self._stamps
        parts = stamps[-1].split(" ") if stamps else []
        if len(parts) <= _STAMP_WITHOUT_STATE_VERSION:
            return 1 if len(parts) == _STAMP_WITHOUT_STATE_VERSION else None
        return int(parts[_STAMP_WITHOUT_STATE_VERSION])

    @field_validator("state", mode="wrap")
    @classmethod
    def _accept_typed_state(cls, value: object, handler: Callable[[object], Any]) -> object:
        # Without a parameter, Pydantic would check the state against the type variable's default, a JSON object. It
        # would reject the typed states that a type checker infers for the same call.
        unparametrised = isinstance(cls.model_fields["state"].annotation, TypeVar)
        if unparametrised and (isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type))):
            return value
        return handler(value)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle looks up a class by its name in its module. A parametrised class is there only if it was created at the
        # top level of that module. So unpickling creates it again, from the generic class and its arguments.
        made_of = type(self).__pydantic_generic_metadata__
        class_or_origin = made_of["origin"] or type(self)
        return _without_fields, (class_or_origin, made_of["args"]), self.__getstate__()


def _without_fields(origin: Any, args: tuple[Any, ...]) -> BaseModel:  # noqa: ANN401 - a class, generic if there are args
    of_class: type[BaseModel] = origin[args] if args else origin
    return of_class.__new__(of_class)


class ProcessAuditEntry(_Model):
    """One step of a process: the command that was sent and, when it has arrived, the reply.

    If you pass an entry as a reply, only the outcome, data and time of its reply are used.
    """

    step_name: Name
    command_id: UUID
    command_type: OptionalName = ""
    command_data: JsonObject | None = None
    sent_at: UtcDatetime = Field(default_factory=_now)
    reply_outcome: ReplyOutcome | None = None
    reply_data: JsonObject | None = None
    received_at: UtcDatetime | None = None
    compensates: UUID | None = None
    """The command that this one undoes."""

    @property
    def duration(self) -> timedelta | None:
        """The time from `sent_at` to `received_at`; `None` until the reply is recorded."""
        return None if self.received_at is None else self.received_at - self.sent_at


class StepReply(_Model):
    """The reply to a command.

    Args:
        command_id: The command that it answers.
        outcome: How the command ended.
        data: The data of the reply, if any.
        received_at: When the reply was received. Default: the time when you pass it to the repository.
    """

    command_id: UUID
    outcome: ReplyOutcome
    data: JsonObject | None = None
    received_at: UtcDatetime | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            command_id: UUID,
            outcome: ReplyOutcome,
            data: JsonObject | None = None,
            received_at: datetime | None = None,
        ) -> None: ...

    else:

        def __init__(self, *values, **fields) -> None:  # noqa: ANN002, ANN003 - see above
            # `model_validate` calls this, too. There, a missing or unknown field must raise ValidationError.
            names = list(type(self).model_fields)
            if len(values) > len(names):
                raise TypeError(f"a StepReply has {len(names)} fields: {', '.join(names)}")
            super().__init__(**dict(zip(names, values, strict=False)), **fields)
