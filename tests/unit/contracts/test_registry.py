from __future__ import annotations

import pytest
from pydantic import SecretStr

from eventmesh.contracts.message import Command, Event
from eventmesh.contracts.registry import Registry
from eventmesh.errors import UsageError


class Placed(Event, name="orders.placed", version=1):
    pass


class Place(Command, name="orders.place", version=1):
    pass


class Pay(Command, name="payments.pay", version=1):
    pass


class Paid(Event, name="payments.paid", version=1):
    pass


class Charged(Event, name="orders.charged", version=1):
    card: SecretStr | None = None


@pytest.fixture
def registry() -> Registry:
    return Registry("orders")


def test_a_model_is_found_by_its_name(registry: Registry) -> None:
    registry.add(Placed)
    assert registry.get("orders.placed") is Placed
    assert registry.get("orders.place") is None


def test_a_message_with_a_secret_is_read_but_not_published(registry: Registry) -> None:
    """Pydantic writes it as asterisks."""
    registry.add(Charged)
    with pytest.raises(UsageError, match="secret field card as asterisks"):
        registry.add_published(Charged)


def test_adding_a_model_twice_is_allowed(registry: Registry) -> None:
    registry.add(Placed)
    registry.add(Placed)
    assert list(registry.owned()) == [Placed]


def test_two_models_with_the_same_name_are_rejected_and_the_error_names_both(
    registry: Registry,
) -> None:
    class Other(Event, name="orders.placed", version=2):
        pass

    registry.add(Placed)
    with pytest.raises(UsageError, match=r"two models of orders.placed: .*Placed and .*Other"):
        registry.add(Other)


def test_an_event_of_another_service_cannot_be_published(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"cannot publish payments.paid: .*'payments'.*orders.…"):
        registry.add_published(Paid)
    assert registry.get("payments.paid") is None


def test_a_command_of_another_service_can_be_sent(registry: Registry) -> None:
    registry.add_published(Pay)
    assert registry.publishes(Pay)


def test_an_added_message_is_not_declared_as_published(registry: Registry) -> None:
    registry.add(Placed)
    assert not registry.publishes(Placed)


def test_a_subclass_of_a_published_model_is_not_published(registry: Registry) -> None:
    class Narrower(Placed, name="orders.placed", version=1):
        pass

    class Nameless(Event):
        pass

    registry.add_published(Placed)
    assert registry.publishes(Placed)
    assert not registry.publishes(Narrower)
    assert not registry.publishes(Nameless)


def test_a_message_without_identity_cannot_be_added(registry: Registry) -> None:
    with pytest.raises(UsageError, match="has no name"):
        registry.add(Event)


def test_owned_messages_are_listed_by_name(registry: Registry) -> None:
    for model in (Placed, Paid, Place):
        registry.add(model)
    registry.add_published(Pay)
    assert list(registry.owned()) == [Place, Placed]
