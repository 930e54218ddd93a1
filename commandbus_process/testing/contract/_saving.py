"""What `save` stores, and what `update` writes and refuses to write."""

from datetime import timedelta
from uuid import uuid4

import pytest

from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    ProcessAlreadyExistsError,
    ProcessNotFoundError,
)
from commandbus_process.models import JsonObject, ProcessAuditEntry, ProcessMetadata, ProcessStatus
from commandbus_process.testing.contract._given import (
    DOMAIN,
    NOON,
    ODD_TEXT,
    Connection,
    Given,
    Repository,
    new_process,
    sent,
)


class SavingContract(Given):
    """What `save` stores, and what `update` writes and refuses to write."""

    async def test_save_stores_every_field(self, repository: Repository, conn: Connection) -> None:
        process = ProcessMetadata[JsonObject](
            domain=DOMAIN,
            process_id=uuid4(),
            process_type="order",
            state={"total": 12.5, "items": [{"sku": "book"}, None, True]},
            status=ProcessStatus.WAITING_FOR_TSQ,
            current_step="charge",
            error_code="CARD_DECLINED",
            error_message="the card was declined",
            created_at=NOON,
            updated_at=NOON + timedelta(hours=1),
            completed_at=NOON + timedelta(hours=2),
        )
        given = process.model_copy(deep=True)
        await repository.save(process, conn)
        assert process.version == 1
        found = await repository.get_by_id(DOMAIN, process.process_id, conn)
        assert found == given.model_copy(update={"version": 1})

    async def test_save_of_a_taken_id_leaves_the_first(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        second = process.model_copy(update={"state": {"total": 99}, "version": None})
        with pytest.raises(ProcessAlreadyExistsError) as caught:
            await repository.save(second, conn)
        assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)
        assert second.version is None
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process

    async def test_the_same_id_in_another_domain_is_another_process(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        await repository.save(process.model_copy(update={"domain": "refunds"}), conn)
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process

    async def test_update_writes_what_a_process_manager_changes_and_nothing_else(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        before = process.model_copy(deep=True)
        process.status = ProcessStatus.FAILED
        process.current_step = "charge"
        process.state["total"] = 13
        process.error_code = "CARD_DECLINED"
        process.error_message = "the card was declined"
        process.completed_at = NOON
        process.created_at = NOON
        await repository.update(process, conn)
        found = await repository.get_by_id(DOMAIN, process.process_id, conn)
        assert found is not None
        assert found == process.model_copy(update={"created_at": before.created_at})
        assert found.version == 2

    async def test_update_of_an_unknown_process(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        for version in (None, 1):
            process.version = version
            with pytest.raises(ProcessNotFoundError) as caught:
                await repository.update(process, conn)
            assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)
            assert process.version == version

    async def test_two_updates_of_one_object_in_a_row(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        await repository.update(process, conn)
        await repository.update(process, conn)
        assert process.version == 3

    async def test_an_update_of_what_somebody_else_changed_writes_nothing(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        stale = process.model_copy(deep=True)
        process.state["by"] = "first"
        await repository.update(process, conn)
        await repository.update(process, conn)
        stale.state["by"] = "second"
        with pytest.raises(ConcurrentUpdateError) as caught:
            await repository.update(stale, conn)
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 3)
        assert stale.version == 1
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process

    async def test_an_update_of_what_was_never_read_is_unconditional_and_seen_by_readers(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        blind = process.model_copy(deep=True, update={"version": None})
        blind.state["by"] = "blind"
        await repository.update(blind, conn)
        assert blind.version == 2
        with pytest.raises(ConcurrentUpdateError):
            await repository.update(process, conn)

    async def test_what_the_database_sets_counts_as_set(self, repository: Repository, process: ProcessMetadata) -> None:
        """So that a dump without what was never set has it."""
        given = process.model_fields_set - {"version", "updated_at"}
        fresh = ProcessMetadata[JsonObject](**{name: getattr(process, name) for name in given})
        await repository.save(fresh)
        assert fresh.model_fields_set == given | {"version", "updated_at"}
        await repository.update(fresh)
        assert fresh.model_fields_set == given | {"version", "updated_at"}

    async def test_the_public_time_is_no_witness(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        """Existing process managers assign to it before they update."""
        await repository.save(process, conn)
        mine, other = process.model_copy(deep=True), process.model_copy(deep=True)
        mine.updated_at = other.updated_at = new_process().updated_at
        await repository.update(mine, conn)
        other.updated_at = mine.updated_at
        with pytest.raises(ConcurrentUpdateError):
            await repository.update(other, conn)

    async def test_a_process_is_saved_with_its_first_commands(self, repository: Repository, conn: Connection) -> None:
        for count in (0, 1, 3):
            process = new_process()
            sent = [
                ProcessAuditEntry(step_name=f"step {number}", command_id=uuid4(), command_type="Do")
                for number in range(count)
            ]
            await repository.save(process, conn, sent=sent)
            assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
            assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == sent
            await repository.update(process, conn)

    async def test_what_the_caller_changes_later_is_not_stored(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        entry = sent()
        await repository.save(process, conn, sent=entry)
        saved, saved_entry = process.model_copy(deep=True), entry.model_copy(deep=True)
        process.state["total"] = 99
        entry.command_data = {"quantity": 99}
        for _ in range(2):
            found = await repository.get_by_id(DOMAIN, process.process_id, conn)
            trail = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
            assert found == saved
            assert trail == [saved_entry]
            assert found is not None
            found.state["total"] = 98
            trail[0].command_data = {"quantity": 98}

    async def test_a_state_that_json_cannot_hold_is_refused(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        for state in ({"n": float("nan")}, {"n": (1,)}, {"n": {1: 2}}, {"n": "\0"}, {"n": 1e16}):
            given = process.model_copy(update={"state": state})
            with pytest.raises(InvalidInputError) as caught:
                await repository.save(given, conn)
            assert caught.value.field == "state"
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) is None

    async def test_a_state_comes_back_with_the_values_that_it_had(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        process.state = {
            "numbers": [1e-7, 1.0, 1, 5e-324, 10**100, -(10**300), 2**63, 0.1],
            ODD_TEXT: ODD_TEXT,
            "": None,
            "order": {"b": 1, "a": 2, "aa": 3},
            "nested": [[], {}, [{}], None, True, False],
        }
        await repository.save(process, conn)
        found = await repository.get_by_id(DOMAIN, process.process_id, conn)
        assert found == process
        assert found is not None
        assert repr(found.state["numbers"]) == repr(process.state["numbers"])

    async def test_another_process_type_is_refused(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        before = process.model_copy(deep=True)
        process.process_type = "refund"
        for write in (repository.update, repository.advance):
            with pytest.raises(InvalidInputError) as caught:
                await write(process, conn)
            assert caught.value.field == "process_type"
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == before

    async def test_first_commands_that_cannot_be_logged_keep_the_process_from_being_saved(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        twice = sent()
        for entries, field in (
            ([sent(), sent().model_copy(update={"command_type": ""})], "sent[1].command_type"),
            ([twice, twice], "sent[1].command_id"),
        ):
            with pytest.raises(InvalidInputError) as caught:
                await repository.save(process, conn, sent=entries)
            assert caught.value.field == field
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) is None
