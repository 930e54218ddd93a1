"""A repository with faults, for testing what your code does when a server or a connection fails."""

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TypeVar
from uuid import UUID

import psycopg
from sqlalchemy.exc import OperationalError
from typing_extensions import override

from commandbus_process.errors import ConcurrentUpdateError
from commandbus_process.models import ProcessMetadata, StateT
from commandbus_process.repository import ProcessRepository
from commandbus_process.testing._passing import PassingRepository

ResultT = TypeVar("ResultT")


class Fault(Enum):
    """What goes wrong. The value is how a message names it."""

    ACKNOWLEDGEMENT_LOST = "the acknowledgement lost"
    """The call takes effect, and then the connection breaks: the call raises `AcknowledgementLostError`."""
    CONNECTION_LOST = "the connection lost"
    """The connection breaks before the call takes effect: the call raises `ConnectionLostError`."""
    CONFLICT = "a conflict"
    """The call raises `ConcurrentUpdateError`, once, as if another transaction had changed the process."""
    DELIVERED_TWICE = "the message delivered twice"
    """The message is delivered again after it was handled."""
    DELIVERED_TWICE_AT_ONCE = "the message delivered twice at once"
    """Two workers handle the message at the same time."""


IN_A_CALL = frozenset({Fault.ACKNOWLEDGEMENT_LOST, Fault.CONNECTION_LOST, Fault.CONFLICT})
"""The faults of one call. The others are faults of the delivery."""


class ConnectionLostError(OperationalError):
    """A connection that broke, as SQLAlchemy reports it. Nothing was written."""

    def __init__(self, call: str, when: str = "before the call took effect") -> None:
        super().__init__(
            f"{call}: injected by FaultyRepository, {when}",
            None,
            psycopg.OperationalError("the connection is lost (injected)"),
            connection_invalidated=True,
        )


class AcknowledgementLostError(ConnectionLostError):
    """A connection that broke after the commit: the call took effect, and the caller does not know."""

    def __init__(self, call: str) -> None:
        super().__init__(call, "after the call took effect")


class FaultyRepository(PassingRepository[StateT]):
    """A repository that passes all calls on to another one, and lets one of the writing calls fail.

    Only the call with the number `at` fails, so a handler that tries again succeeds.

    Args:
        inner: The repository that does the work.
        fault: What goes wrong in that call. Default: nothing; then it only counts.
        at: The number of the writing call that fails, from 1. For `Fault.CONFLICT` only calls of `update` and `advance`
            are counted, since no other method compares versions.

    Attributes:
        writes: The names of the writing calls so far, in order.
        touched: The processes that calls were about, in the order in which they were first named.
        failed: The call that failed, as a message names it; `None` if none has failed yet.
    """

    def __init__(self, inner: ProcessRepository[StateT], fault: Fault | None = None, *, at: int = 1) -> None:
        if fault is not None and fault not in IN_A_CALL:
            raise ValueError(f"{fault} is not a fault of a call; assert_redelivery_safe() delivers a message twice")
        if at < 1:
            raise ValueError("at must be 1 or more: calls are counted from 1")
        super().__init__(inner)
        self._fault = fault
        self._at = at
        self.writes: list[str] = []
        self.touched: dict[tuple[str, UUID], None] = {}
        self.failed: str | None = None

    @override
    def _named(self, domain: str, process_id: UUID) -> None:
        self.touched.setdefault((domain, process_id))

    @override
    async def _write(
        self,
        name: str,
        call: Callable[[], Awaitable[ResultT]],
        process: ProcessMetadata[StateT] | None = None,
    ) -> ResultT:
        """Run a writing call, and let it fail if its number has come."""
        self.writes.append(name)
        counted = [each for each in self.writes if each in COMPARING] if self._fault is Fault.CONFLICT else self.writes
        is_counted = self._fault is not Fault.CONFLICT or name in COMPARING
        if self._fault is None or self.failed is not None or not is_counted or len(counted) != self._at:
            return await call()
        self.failed = f"{name}() (writing call {len(self.writes)})"
        if self._fault is Fault.CONFLICT and process is not None:
            version = process.version or 1
            raise ConcurrentUpdateError(process.domain, process.process_id, version, version + 1)
        if self._fault is Fault.CONNECTION_LOST:
            raise ConnectionLostError(self.failed)
        await call()
        raise AcknowledgementLostError(self.failed)


COMPARING = frozenset({"update", "advance"})
"""The methods that compare versions."""
