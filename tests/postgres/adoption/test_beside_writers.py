"""Adoption while hand-written SQL goes on writing: nothing is lost, and no writer fails."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.postgres.adoption.adopting import adopt_and_use, compared, make, run_statements
from tests.postgres.adoption.variations import AUDIT, PROCESS, UNLINKED, Variation, alter
from tests.support.schema import wait_until

WRITERS = 3
ENOUGH = 20  # processes of each writer before and after the adoption

SAVE = f"INSERT INTO {PROCESS} (domain, process_id, process_type, status) VALUES ('shop', %(id)s, 'order', 'WAITING')"
LOG = (
    f"INSERT INTO {AUDIT} (domain, process_id, step_name, command_id, command_type, sent_at) "
    "VALUES ('shop', %(id)s, 'reserve', %(command)s, 'Reserve', now())"
)
REPLY = (
    f"UPDATE {AUDIT} SET reply_outcome = 'SUCCESS', received_at = now() "
    "WHERE domain = 'shop' AND process_id::text = %(id)s::text AND command_id::text = %(command)s::text"
)
END = (
    f"UPDATE {PROCESS} SET status = 'COMPLETED', updated_at = now(), completed_at = now() "
    "WHERE domain = 'shop' AND process_id::text = %(id)s::text"
)


@dataclass
class Writer:
    """A program that knows nothing of the library: for each process it saves, logs, records the reply, and ends it.

    Attributes:
        written: The processes whose last transaction was committed.
        error: What stopped it.
    """

    url: str
    written: list[UUID] = field(default_factory=list[UUID])
    error: BaseException | None = None

    def write(self, stop: threading.Event) -> None:
        try:
            # Without prepared statements: those have the types that the columns had when they were prepared.
            with psycopg.connect(self.url, prepare_threshold=None) as connection:
                while not stop.is_set():
                    given = {"id": str(uuid4()), "command": str(uuid4())}
                    for statements in ((SAVE, LOG), (END, REPLY)):
                        for statement in statements:
                            connection.execute(statement.encode(), given)
                        connection.commit()
                    self.written.append(UUID(given["id"]))
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.error = error


@contextmanager
def writing(url: str) -> Generator[list[Writer]]:
    """Let programs write while the block runs."""
    stop = threading.Event()
    writers = [Writer(url) for _ in range(WRITERS)]
    threads = [threading.Thread(target=writer.write, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield writers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for_more(writers: list[Writer]) -> None:
    """Return once each of them has written some more, or has failed."""
    wanted = [len(writer.written) + ENOUGH for writer in writers]
    pairs = list(zip(writers, wanted, strict=True))
    wait_until(lambda: all(writer.error or len(writer.written) >= number for writer, number in pairs), [])
    assert [writer.error for writer in writers] == [None] * len(writers)


SCRIPTS = {
    "as they are": "",
    "with much to change": UNLINKED
    + alter(PROCESS, "ALTER created_at TYPE timestamp", "ALTER state TYPE text", "ALTER current_step TYPE varchar(9)")
    + alter(PROCESS, "ALTER process_id TYPE text", "ADD deadline date")
    + alter(AUDIT, "ALTER process_id TYPE text", "ALTER sent_at TYPE timestamp", "ALTER id TYPE smallint")
    + "ALTER SEQUENCE commandbus.process_audit_id_seq CACHE 5;"
    + alter(AUDIT, "ADD FOREIGN KEY (domain, process_id) REFERENCES commandbus.process (domain, process_id)"),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_hand_written_sql_goes_on_writing(empty_database_url: str, script: str) -> None:
    url = empty_database_url
    make(url, Variation(script, ""))
    with writing(url) as writers:
        wait_for_more(writers)
        found = compared(url)
        assert found.fits is not bool(script)
        run_statements(url, found)
        await adopt_and_use(url, compared(url))
        wait_for_more(writers)
    assert [writer.error for writer in writers] == [None] * len(writers)
    written = sorted(process_id for writer in writers for process_id in writer.written)
    with psycopg.connect(url) as connection:
        ended = connection.execute(
            f"SELECT process_id FROM {PROCESS} JOIN {AUDIT} USING (domain, process_id) "
            "WHERE domain = 'shop' AND status = 'COMPLETED' AND reply_outcome = 'SUCCESS' ORDER BY process_id"
        ).fetchall()
    assert [process_id for (process_id,) in ended] == written
