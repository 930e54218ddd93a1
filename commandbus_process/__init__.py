"""The state and the audit trail of process managers (sagas), in PostgreSQL, for asyncio applications."""

from commandbus_process import tables
from commandbus_process.errors import (
    ConcurrentUpdateError,
    DeadlockError,
    InvalidInputError,
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessError,
    ProcessLockedError,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepError,
    StepNotFoundError,
    StoredDataError,
    StoredStateError,
    TransactionConflictError,
    UnindexedFilterError,
)
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import (
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StepReply,
)
from commandbus_process.postgres import (
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessStream,
    run_in_transaction,
)
from commandbus_process.repository import OnUnreadable, ProcessRepository
from commandbus_process.summaries import BacklogGroup, Count, OpenCommand, Page, ProcessSummary, StepStatistics

__all__ = [
    "BacklogGroup",
    "ConcurrentUpdateError",
    "Count",
    "DeadlockError",
    "InvalidInputError",
    "JsonObject",
    "NothingWrittenError",
    "OnUnreadable",
    "OpenCommand",
    "Page",
    "PostgresProcessQueries",
    "PostgresProcessRepository",
    "ProcessAlreadyExistsError",
    "ProcessAuditEntry",
    "ProcessError",
    "ProcessFilter",
    "ProcessLockedError",
    "ProcessMetadata",
    "ProcessNotFoundError",
    "ProcessRepository",
    "ProcessRepositoryError",
    "ProcessStatus",
    "ProcessStream",
    "ProcessSummary",
    "ReplyConflictError",
    "ReplyOutcome",
    "StepAlreadyLoggedError",
    "StepError",
    "StepNotFoundError",
    "StepReply",
    "StepStatistics",
    "StoredDataError",
    "StoredStateError",
    "TransactionConflictError",
    "UnindexedFilterError",
    "run_in_transaction",
    "tables",
]
