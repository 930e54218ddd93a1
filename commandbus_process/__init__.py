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
    ProcessNotEndedError,
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
from commandbus_process.retention import ProcessRetention, ProcessWithTrail, PurgePreview, PurgeProgress
from commandbus_process.summaries import Count, Page, ProcessSummary

__all__ = [
    "ConcurrentUpdateError",
    "Count",
    "DeadlockError",
    "InvalidInputError",
    "JsonObject",
    "NothingWrittenError",
    "OnUnreadable",
    "Page",
    "PostgresProcessQueries",
    "PostgresProcessRepository",
    "ProcessAlreadyExistsError",
    "ProcessAuditEntry",
    "ProcessError",
    "ProcessFilter",
    "ProcessLockedError",
    "ProcessMetadata",
    "ProcessNotEndedError",
    "ProcessNotFoundError",
    "ProcessRepository",
    "ProcessRepositoryError",
    "ProcessRetention",
    "ProcessStatus",
    "ProcessStream",
    "ProcessSummary",
    "ProcessWithTrail",
    "PurgePreview",
    "PurgeProgress",
    "ReplyConflictError",
    "ReplyOutcome",
    "StepAlreadyLoggedError",
    "StepError",
    "StepNotFoundError",
    "StepReply",
    "StoredDataError",
    "StoredStateError",
    "TransactionConflictError",
    "UnindexedFilterError",
    "run_in_transaction",
    "tables",
]
