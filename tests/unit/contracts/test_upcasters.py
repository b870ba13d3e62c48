from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from eventmesh.contracts.message import Event
from eventmesh.contracts.versions import describe_invalid_data, readable_versions, upcast
from eventmesh.errors import UnreadableMessage, UsageError


class Paid(Event, name="payments.paid", version=4):
    trail: list[int]


@Paid.upcaster(from_version=2)
def from_two(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"trail": [*data["trail"], 2]}


@Paid.upcaster(from_version=3)
def from_three(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"trail": [*data["trail"], 3]}


def test_upcasters_are_applied_in_order_from_the_oldest_version() -> None:
    assert upcast(Paid, {"trail": []}, 2) == {"trail": [2, 3]}
    assert upcast(Paid, {"trail": []}, 3) == {"trail": [3]}


def test_data_of_the_models_own_version_is_returned_unchanged() -> None:
    data = {"trail": [], "unknown": object()}
    assert upcast(Paid, data, 4) is data


def test_a_model_reads_every_version_from_which_upcasters_lead_to_its_own() -> None:
    assert readable_versions(Paid) == range(2, 5)


def test_a_model_without_upcasters_reads_only_its_own_version() -> None:
    class Fresh(Event, name="a.fresh", version=3):
        pass

    assert readable_versions(Fresh) == range(3, 4)
    with pytest.raises(UnreadableMessage, match=r"this service reads version 3. Deploy"):
        upcast(Fresh, {}, 2)


def test_versions_before_a_missing_upcaster_cannot_be_read() -> None:
    class Gap(Event, name="a.gap", version=4):
        pass

    Gap.upcaster(from_version=1)(dict)
    Gap.upcaster(from_version=3)(dict)
    assert readable_versions(Gap) == range(3, 5)


@pytest.mark.parametrize("version", [0, 1, 5, 99])
def test_a_version_without_a_chain_of_upcasters_is_unreadable(version: int) -> None:
    with pytest.raises(
        UnreadableMessage,
        match=f"version {version} of payments.paid is not known here.*version 2 to 4.*replay",
    ):
        upcast(Paid, {"trail": []}, version)


def test_a_message_whose_upcaster_fails_is_unreadable_and_the_error_names_the_version() -> None:
    with pytest.raises(
        UnreadableMessage, match=r"payments.paid from version 2 failed: KeyError"
    ) as caught:
        upcast(Paid, {}, 2)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_upcaster_that_could_never_be_called_is_rejected() -> None:
    class Renamed(Event, name="a.renamed", version=2): ...

    class Nameless(Event): ...

    async def up(data: dict[str, Any]) -> dict[str, Any]:
        return data

    version: Any = "1"
    coroutine_function: Any = up
    with pytest.raises(UsageError, match=r"up of a.renamed v2 is a coroutine function: write it"):
        Renamed.upcaster(from_version=1)(coroutine_function)
    with pytest.raises(UsageError, match="has from_version='1', which must be between 1 and 1"):
        Renamed.upcaster(from_version=version)(dict)
    with pytest.raises(UsageError, match="Nameless has no name"):
        Nameless.upcaster(from_version=1)(dict)


@given(st.lists(st.integers()))
def test_upcasting_does_not_modify_its_input(trail: list[int]) -> None:
    data = {"trail": trail}
    before = copy.deepcopy(data)
    assert upcast(Paid, data, 2) == upcast(Paid, data, 2)
    assert data == before


class Secret(Event, name="a.secret", version=1):
    card: SecretStr
    number: int
    parts: tuple[int, ...] = ()


def reason_for(data: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Secret.model_validate(data)
    return describe_invalid_data(Secret, caught.value)


def test_the_reason_names_each_invalid_field_and_its_error() -> None:
    reason = reason_for({"number": "x", "parts": [1, "y"]})
    assert reason.startswith("the data is not a valid a.secret v1: card: Field required; number: ")
    assert "; parts.1: " in reason


def test_the_reason_contains_no_values() -> None:
    assert "4111" not in reason_for({"card": ["4111"], "number": "4111", "parts": "4111"})


def test_the_reason_says_data_when_the_whole_document_is_invalid() -> None:
    assert reason_for([]).startswith("the data is not a valid a.secret v1: data: ")
