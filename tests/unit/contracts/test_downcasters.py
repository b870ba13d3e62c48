from __future__ import annotations

from typing import Any

import pytest

from eventmesh.contracts.message import Event
from eventmesh.contracts.registry import Registry
from eventmesh.contracts.versions import check_writable, downcast
from eventmesh.errors import UsageError


class Paid(Event, name="payments.paid", version=4):
    trail: list[int]


@Paid.downcaster(to_version=3)
def to_three(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"trail": [*data["trail"], 3]}


@Paid.downcaster(to_version=2)
def to_two(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"trail": [*data["trail"], 2]}


def test_downcasters_are_applied_in_order_from_the_newest_version() -> None:
    assert downcast(Paid, {"trail": []}, 2) == {"trail": [3, 2]}
    assert downcast(Paid, {"trail": []}, 3) == {"trail": [3]}


def test_data_of_the_models_own_version_is_returned_unchanged() -> None:
    data = {"trail": [], "unknown": object()}
    assert downcast(Paid, data, 4) is data


@pytest.mark.parametrize("version", [0, -1, 5, True, "3"])
def test_a_version_that_the_model_does_not_have_cannot_be_written(version: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot be written as version .*from 1 to 4"):
        check_writable(Paid, version)


def test_the_first_version_of_a_message_has_no_other_that_could_be_chosen() -> None:
    class First(Event, name="a.first", version=1):
        pass

    with pytest.raises(UsageError, match=r"as version 3: it has no other version than 1\."):
        check_writable(First, 3)


def test_a_version_without_a_chain_of_downcasters_cannot_be_written() -> None:
    check_writable(Paid, 2)
    with pytest.raises(UsageError, match=r"no downcaster to version 1. Add @Paid.downcaster"):
        check_writable(Paid, 1)


def test_the_error_names_a_downcaster_that_fails() -> None:
    with pytest.raises(UsageError, match=r"to_three of payments.paid v4 to version 3 .*KeyError"):
        downcast(Paid, {}, 2)


def test_the_error_names_a_downcaster_that_returns_none() -> None:
    class Renamed(Event, name="a.renamed", version=2):
        pass

    @Renamed.downcaster(to_version=1)
    def clear(data: dict[str, Any]) -> Any:
        data.clear()

    with pytest.raises(UsageError, match=r"clear of a.renamed v2 to version 1 returned a NoneType"):
        downcast(Renamed, {}, 1)


@pytest.mark.parametrize("version", [0, 4, 5])
def test_a_downcaster_must_lead_to_an_older_version(version: int) -> None:
    with pytest.raises(UsageError, match=f"downcaster <lambda> .* has to_version={version}"):
        Paid.downcaster(to_version=version)(lambda data: data)


def test_a_second_downcaster_to_the_same_version_is_rejected() -> None:
    with pytest.raises(UsageError, match="two downcasters to version 2"):
        Paid.downcaster(to_version=2)(lambda data: data)


def test_a_registry_keeps_the_version_in_which_a_message_is_written() -> None:
    registry = Registry("payments")
    registry.add_published(Paid)
    assert registry.written(Paid) == 4
    registry.add_published(Paid, version=2)
    registry.add_published(Paid)
    assert registry.written(Paid) == 2


def test_a_registry_rejects_a_second_version_and_one_that_cannot_be_written() -> None:
    registry = Registry("payments")
    registry.add_published(Paid, version=2)
    with pytest.raises(UsageError, match=r"as version 2 and as version 3: choose one"):
        registry.add_published(Paid, version=3)
    with pytest.raises(UsageError, match=r"no downcaster to version 1"):
        Registry("payments").add_published(Paid, version=1)
