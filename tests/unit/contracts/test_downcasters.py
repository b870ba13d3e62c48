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


def test_a_chain_of_downcasters_is_gone_through_in_order() -> None:
    assert downcast(Paid, {"trail": []}, 2) == {"trail": [3, 2]}
    assert downcast(Paid, {"trail": []}, 3) == {"trail": [3]}


def test_data_of_the_own_version_is_left_as_it_is() -> None:
    data = {"trail": [], "unknown": object()}
    assert downcast(Paid, data, 4) is data


@pytest.mark.parametrize("version", [0, -1, 5, True])
def test_a_version_that_is_none_of_the_model_s_cannot_be_written(version: int) -> None:
    with pytest.raises(UsageError, match=r"cannot be written as version .*from 1 to 4"):
        check_writable(Paid, version)


def test_a_version_to_which_no_downcasters_lead_cannot_be_written() -> None:
    check_writable(Paid, 2)
    with pytest.raises(UsageError, match=r"no downcaster to version 1. Add @Paid.downcaster"):
        check_writable(Paid, 1)


def test_a_downcaster_that_fails_is_named() -> None:
    with pytest.raises(UsageError, match=r"to_three of payments.paid v4 to version 3 .*KeyError"):
        downcast(Paid, {}, 2)


def test_a_downcaster_that_returns_nothing_is_named() -> None:
    class Odd(Event, name="a.odd", version=2):
        pass

    @Odd.downcaster(to_version=1)
    def forget(data: dict[str, Any]) -> Any:
        data.clear()

    with pytest.raises(UsageError, match=r"forget of a.odd v2 to version 1 returned a NoneType"):
        downcast(Odd, {}, 1)


@pytest.mark.parametrize("version", [0, 4, 5])
def test_a_downcaster_leads_to_an_older_version(version: int) -> None:
    with pytest.raises(UsageError, match=f"downcaster <lambda> .* has to_version={version}"):
        Paid.downcaster(to_version=version)(lambda data: data)


def test_two_downcasters_to_one_version_are_refused() -> None:
    with pytest.raises(UsageError, match="two downcasters to version 2"):
        Paid.downcaster(to_version=2)(lambda data: data)


def test_a_registry_keeps_as_which_version_a_message_is_written() -> None:
    registry = Registry("payments")
    registry.add_published(Paid)
    assert registry.written(Paid) == 4
    registry.add_published(Paid, version=2)
    registry.add_published(Paid)
    assert registry.written(Paid) == 2


def test_a_registry_refuses_a_second_version_and_one_that_cannot_be_written() -> None:
    registry = Registry("payments")
    registry.add_published(Paid, version=2)
    with pytest.raises(UsageError, match=r"as version 2 and as version 3: choose one"):
        registry.add_published(Paid, version=3)
    with pytest.raises(UsageError, match=r"no downcaster to version 1"):
        Registry("payments").add_published(Paid, version=1)
