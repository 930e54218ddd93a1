"""Which statements of an engine fail, for a caller whose transaction must go on."""

from sqlalchemy import ExceptionContext, event
from sqlalchemy.ext.asyncio import AsyncEngine


def failed_statements(engine: AsyncEngine) -> list[str | None]:
    """Give a list that gets each statement that fails from now on.

    COPY is left out: it is the first try of a batch, and fails in a savepoint if something is there already.
    """
    failed: list[str | None] = []

    def add(context: ExceptionContext) -> None:
        if not (context.statement or "").startswith("COPY"):
            failed.append(context.statement)

    event.listen(engine.sync_engine, "handle_error", add)
    return failed
