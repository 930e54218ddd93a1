"""The process repository on PostgreSQL, and the rooms behind it.

Public:

- `_repository`: the class; each method checks its arguments, runs its statement, and turns rows into objects.
- `_queries`: the class that only reads: pages, streams and numbers of any number of processes.
- `_retrying`: `run_in_transaction`, which runs a transaction again after a lost race.

Statements, by feature:

- `_statements`: the statements about one process or one step.
- `_listing`: a filter as SQL, for everything that lists processes; `find_by_status` and `claim`.
- `_claiming`: `claim` by the version.
- `_pages`: pages, streams and counts.
- `_statistics`: the backlog, the duration of steps, and commands without a reply.
- `_retention`: delete what has ended, preview that, and erase; `commandbus_process.retention` is its class.
- `_cursors`: the text that names a position in a list.
- `_stream`: what a stream does between two pages.
- `_advance`: `advance`, and `save` with its first commands: their statements, and why a step was not taken.
- `_bulk`: `save_many` and `log_many`: their statements, and why an item was not written.

What they share:

- `_expressions`: parts of statements: parameters, columns as they are read, comparisons.
- `_parameters`: checked arguments as the parameters of statements.
- `_batches`: splits many items into batches, and prepares the next batch while the last one is written.
- `_copy`: writes a batch with COPY.
- `_reading`: turns rows into processes and entries.
- `_numbers`: turns rows into numbers, and into commands without a reply.
- `_stamps`: which row an object matches, and what the database sets when it writes a process.
- `_refusals`: why a write changed nothing, as an error; all writers use it.
- `_transaction`: runs statements on the right connection, and translates the conflicts that PostgreSQL finds.
- `_storable`: what an encoding or a limit of the server does not allow.
"""

from commandbus_process.postgres._queries import PostgresProcessQueries
from commandbus_process.postgres._repository import PostgresProcessRepository
from commandbus_process.postgres._retrying import run_in_transaction
from commandbus_process.postgres._stream import ProcessStream

__all__ = ["PostgresProcessQueries", "PostgresProcessRepository", "ProcessStream", "run_in_transaction"]
