"""What is found by ids and by statuses."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from commandbus_process.errors import (
    InvalidInputError,
)
from commandbus_process.models import ProcessStatus
from commandbus_process.testing.contract._given import (
    DOMAIN,
    NOON,
    Connection,
    Given,
    Repository,
    new_process,
)


class ReadingContract(Given):
    """What is found by an id or by a status."""

    async def test_get_by_id_of_an_unknown_process_is_none(self, repository: Repository, conn: Connection) -> None:
        assert await repository.get_by_id(DOMAIN, uuid4(), conn) is None

    async def test_find_by_status_oldest_first(self, repository: Repository, conn: Connection) -> None:
        domain, elsewhere = f"orders {uuid4()}", f"refunds {uuid4()}"
        same_time = sorted((uuid4() for _ in range(3)), key=str)
        youngest = new_process(domain=domain)
        youngest.created_at = NOON + timedelta(hours=1)
        expected: list[UUID] = [*same_time, youngest.process_id]
        await repository.save(youngest, conn)
        for process_id, status in zip(reversed(same_time), list(ProcessStatus)[:3], strict=True):
            process = new_process(process_id, domain=domain)
            process.created_at = NOON
            process.status = status
            await repository.save(process, conn)
        other = new_process(domain=domain)
        other.status = ProcessStatus.FAILED
        await repository.save(other, conn)
        await repository.save(youngest.model_copy(update={"domain": elsewhere}), conn)
        statuses = list(ProcessStatus)[:3]
        found = await repository.find_by_status(domain, statuses, conn)
        assert [process.process_id for process in found] == expected
        assert found[-1] == youngest
        assert [
            process.process_id for process in await repository.find_by_status(domain, {ProcessStatus.FAILED}, conn)
        ] == [other.process_id]
        assert await repository.find_by_status(domain, [], conn) == []

    async def test_find_by_status_of_a_type_and_up_to_a_limit(self, repository: Repository, conn: Connection) -> None:
        domain = f"orders {uuid4()}"
        processes = [new_process(domain=domain) for _ in range(4)]
        for minute, process in enumerate(processes):
            process.created_at = NOON - timedelta(minutes=minute)
            process.process_type = "refund" if minute == 2 else "order"
            await repository.save(process, conn)
        oldest_first = processes[::-1]
        statuses = [ProcessStatus.PENDING]
        assert await repository.find_by_status(domain, statuses, conn, limit=3) == oldest_first[:3]
        assert await repository.find_by_status(domain, statuses, conn, process_type="refund") == [processes[2]]
        assert await repository.find_by_status(domain, statuses, conn, process_type="order", limit=2) == [
            processes[3],
            processes[1],
        ]
        for limit in (0, -1):
            with pytest.raises(InvalidInputError):
                await repository.find_by_status(domain, statuses, conn, limit=limit)

    async def test_get_by_ids_in_the_given_order_and_each_once(self, repository: Repository, conn: Connection) -> None:
        processes = [new_process() for _ in range(3)]
        for process in processes:
            await repository.save(process, conn)
        await repository.save(processes[0].model_copy(update={"domain": "refunds", "state": {}}), conn)
        last, first = processes[2], processes[0]
        found = await repository.get_by_ids(DOMAIN, [last.process_id, uuid4(), first.process_id, last.process_id], conn)
        assert list(found.items()) == [(last.process_id, last), (first.process_id, first)]
        assert await repository.get_by_ids(DOMAIN, [], conn) == {}

    async def test_of_an_unknown_process_there_are_no_steps(self, repository: Repository, conn: Connection) -> None:
        key = DOMAIN, uuid4()
        assert await repository.get_audit_trail(*key, conn) == []
        assert await repository.get_completed_steps(*key, conn) == []
        assert await repository.get_steps_to_compensate(*key, conn, include_unknown=True) == []

    async def test_a_lock_without_a_connection_is_refused(self, repository: Repository) -> None:
        with pytest.raises(InvalidInputError) as caught:
            await repository.get_by_id(DOMAIN, uuid4(), for_update=True)
        assert caught.value.field == "for_update"


class ClaimingContract(Given):
    """What `claim` returns. Replace `conn` by a fixture that gives a connection: it needs one."""

    async def test_claims_the_oldest_that_fit(self, repository: Repository, conn: Connection) -> None:
        assert conn is not None, "replace the fixture `conn`: `claim` needs a connection"
        domain = f"orders {uuid4()}"
        processes = [new_process(domain=domain) for _ in range(5)]
        for minute, process in enumerate(processes):
            process.created_at = NOON - timedelta(minutes=minute)
            process.status = ProcessStatus.COMPLETED if minute == 4 else ProcessStatus.PENDING
            process.deadline = None if minute == 3 else NOON + timedelta(minutes=minute)
            process.current_step = "charge" if minute == 1 else None
            process.business_key = "A-2" if minute == 2 else None
            process.updated_at = NOON - timedelta(minutes=minute)
            await repository.save(process, conn)
        pending = [ProcessStatus.PENDING]
        newest, charging, keyed, oldest, _ = processes
        assert await repository.claim(domain, pending, conn, limit=2) == [oldest, keyed]
        assert await repository.claim(domain, pending, conn, limit=9, current_step="charge") == [charging]
        assert await repository.claim(domain, pending, conn, limit=9, business_key="A-2") == [keyed]
        assert await repository.claim(domain, pending, conn, limit=9, process_type="refund") == []
        before = NOON + timedelta(minutes=2)
        assert await repository.claim(domain, pending, conn, limit=9, deadline_before=before) == [newest, charging]
        before = NOON - timedelta(minutes=1)
        assert await repository.claim(domain, pending, conn, limit=9, updated_before=before) == [oldest, keyed]
        assert await repository.claim(domain, [], conn, limit=9) == []
        with pytest.raises(InvalidInputError):
            await repository.claim(domain, pending, conn, limit=0)
