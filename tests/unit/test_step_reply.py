"""A reply is made of values in order or by name, and from a dictionary, for example in a web framework."""

from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from commandbus_process import ReplyOutcome, StepReply

KEY = UUID(int=7)


def test_values_in_order_and_by_name_make_the_same() -> None:
    in_order = StepReply(KEY, ReplyOutcome.SUCCESS, {"a": 1}, None)
    assert in_order == StepReply(command_id=KEY, outcome=ReplyOutcome.SUCCESS, data={"a": 1})
    assert StepReply.model_validate({"command_id": str(KEY), "outcome": "SUCCESS", "data": {"a": 1}}) == in_order


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"command_id": str(KEY)}, "outcome"),
        ({"command_id": str(KEY), "outcome": "SUCCESS", "typo": 1}, "typo"),
        ({"command_id": "7", "outcome": "SUCCESS"}, "command_id"),
    ],
    ids=["missing", "unknown", "wrong"],
)
def test_a_dictionary_that_does_not_fit_is_a_validation_error(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StepReply.model_validate(body)
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_too_many_values_are_refused() -> None:
    values: list[Any] = [KEY, ReplyOutcome.SUCCESS, None, None, "one more"]
    with pytest.raises(TypeError, match="has 4 fields: command_id, outcome, data, received_at"):
        StepReply(*values)
