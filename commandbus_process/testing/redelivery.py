"""Find out whether a handler of messages is safe to be run again: with each fault, at each of its writes."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar

from commandbus_process.models import StateT
from commandbus_process.repository import ProcessRepository
from commandbus_process.testing._difference import End, differences, read_end
from commandbus_process.testing.faults import COMPARING, IN_A_CALL, Fault, FaultyRepository
from commandbus_process.testing.memory import InMemoryProcessRepository

MessageT = TypeVar("MessageT")

_DELIVERIES = 5


async def assert_redelivery_safe(
    handler: Callable[[MessageT, ProcessRepository[StateT]], Awaitable[object]],
    message: MessageT,
    *,
    repository: Callable[[], ProcessRepository[StateT]] | None = None,
    given: Callable[[ProcessRepository[StateT]], Awaitable[object]] | None = None,
    effects: Callable[[], object] | None = None,
    faults: Iterable[Fault] = Fault,
    ignore: Collection[str] = (),
) -> None:
    """Check that a handler does the same, however often its message is delivered and whichever of its writes fails.

    First, the handler handles the message undisturbed. Then it is run again from the start: for each fault, and for
    each of its writing calls, which fails. If the handler raises, the message is delivered again, up to 5 times in all,
    as a message bus does. At the end, what is stored must be the same as after the undisturbed run.

    All processes that the handler has named are compared, with their trails. Times are compared only by whether there
    is one, because a redelivery comes later. Versions are not compared: to write the same again is harmless. Ids of
    commands, if they differ, are compared by their places in the trail.

    Args:
        handler: Handles a message, with the repository that it gets.
        message: The message. The same object is delivered each time, so do not change it.
        repository: Makes the repository of a run, which must be empty. Default: an
            `InMemoryProcessRepository` with JSON objects as states.
        given: Stores what is there before the message comes: a process that waits for a reply, for example. Set your
            own doubles back here, too.
        effects: Returns what the handler has done elsewhere, for example the set of the ids of the commands that it has
            sent. It is called after each run, and must return a new object that can be compared.
        faults: The faults. Default: all.
        ignore: Fields that may differ: `"state.attempts"`, `"error_message"`, `"command_data.token"`.

    Raises:
        AssertionError: The handler is not safe. The message says with which fault, at which call, and what differs. Or
            it raises without a fault, or writes nothing, so that there is nothing to check.
    """
    make: Callable[[], ProcessRepository[Any]] = InMemoryProcessRepository if repository is None else repository

    async def run(fault: Fault | None, at: int = 1) -> "_Run":
        inner = make()
        if given is not None:
            await given(inner)
        each = _Run(inner, fault, at)
        await each.deliver(lambda faulty: handler(message, faulty))
        each.end = await read_end(inner, each.faulty.touched)
        each.effects = None if effects is None else effects()
        return each

    undisturbed = await run(None)
    if undisturbed.errors:
        error = undisturbed.errors[0]
        raise AssertionError(f"the handler raises {_describe(error)} without any fault") from error
    writes = undisturbed.faulty.writes
    if not writes:
        raise AssertionError("the handler wrote nothing, so there is nothing to check: is the message about a process?")
    problems: list[str] = []
    for fault in dict.fromkeys(faults):
        for at in range(1, 1 + _number_of_places(fault, writes)):
            disturbed = await run(fault, at)
            problems += [f"{disturbed.what_happened}: {each}" for each in disturbed.compare(undisturbed, ignore)]
    if problems:
        raise AssertionError("the handler is not safe to be run again:\n" + "\n".join(f"- {each}" for each in problems))


def _number_of_places(fault: Fault, writes: list[str]) -> int:
    """Return at how many calls a fault can happen."""
    if fault is Fault.CONFLICT:
        return sum(name in COMPARING for name in writes)
    return len(writes) if fault in IN_A_CALL else 1


class _Run:
    """One run of the handler, from an empty repository to the end of the last delivery."""

    def __init__(self, inner: ProcessRepository[Any], fault: Fault | None, at: int) -> None:
        self._fault = fault
        self.faulty = FaultyRepository(inner, fault if fault in IN_A_CALL else None, at=at)
        self.errors: list[Exception] = []
        self.is_done = False
        self.end: End = {}
        self.effects: object = None

    async def deliver(self, handle: Callable[[ProcessRepository[Any]], Awaitable[object]]) -> None:
        """Deliver the message as the fault wants it, and again after an error."""
        if self._fault is Fault.DELIVERED_TWICE_AT_ONCE:
            self.is_done = all(await asyncio.gather(*(self._deliver_until_done(handle) for _ in range(2))))
            return
        self.is_done = await self._deliver_until_done(handle)
        if self._fault is Fault.DELIVERED_TWICE and self.is_done:
            self.is_done = await self._deliver_until_done(handle)

    async def _deliver_until_done(self, handle: Callable[[ProcessRepository[Any]], Awaitable[object]]) -> bool:
        """Deliver the message until the handler raises nothing. Return whether that came to be.

        Without a fault there is one delivery.
        """
        for _ in range(1 if self._fault is None else _DELIVERIES):
            try:
                await handle(self.faulty)
            except Exception as error:  # noqa: BLE001 - a bus delivers again, whatever it is
                self.errors.append(error)
            else:
                return True
        return False

    @property
    def what_happened(self) -> str:
        """The fault, and the call in which it happened."""
        fault = "no fault" if self._fault is None else self._fault.value
        return f"with {fault} at {self.faulty.failed}" if self.faulty.failed else f"with {fault}"

    def compare(self, undisturbed: "_Run", ignore: Collection[str]) -> list[str]:
        """Return what is wrong with this run."""
        if self._fault in IN_A_CALL and self.faulty.failed is None:
            return ["it did not come to that: the handler wrote less than without the fault, before anything failed"]
        if not self.is_done:
            error = self.errors[-1]
            return [f"the handler still raises {_describe(error)} after {_DELIVERIES} deliveries"]
        found = list(differences(undisturbed.end, self.end, ignore))
        if self.effects != undisturbed.effects:
            found.append(f"the effects are {self.effects!r}, and {undisturbed.effects!r} without the fault")
        return found


def _describe(error: Exception) -> str:
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__
