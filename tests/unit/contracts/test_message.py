from __future__ import annotations

from enum import Enum
from typing import Any, Generic, TypeVar

import pytest
from pydantic import ValidationError

from eventmesh.contracts.message import (
    Command,
    Event,
    Identity,
    Message,
    identity_of,
    key_of,
)
from eventmesh.errors import UsageError


class Paid(Event, name="payments.paid", version=2, key="order_id"):
    order_id: int
    currency: str = "USD"


class Pay(Command, name="payments.pay", version=1):
    order_id: int


def declare(base: type[Message] = Event, **keywords: Any) -> type[Message]:
    """A message class with these class keywords and one field, `a`."""

    class Declared(base, **keywords):
        a: int = 0

    return Declared


def test_the_identity_of_an_event_is_its_class_keywords() -> None:
    assert identity_of(Paid) == Identity("event", "payments.paid", 2, "order_id")
    assert str(identity_of(Paid)) == "payments.paid v2"


def test_a_command_may_have_no_key() -> None:
    assert identity_of(Pay) == Identity("command", "payments.pay", 1, None)


def test_the_owner_is_the_first_segment_of_the_name() -> None:
    assert identity_of(declare(name="a_1.b.c", version=1)).owner == "a_1"


@pytest.mark.parametrize(
    "name",
    [None, "", "paid", "Payments.paid", "payments.", ".paid", "1a.b", "a.b-c", "a..b", "a.b\n"],
)
def test_an_invalid_message_name_is_rejected(name: str | None) -> None:
    with pytest.raises(
        UsageError, match=r'has an invalid message name.*: write name="<owner>.<what>"'
    ):
        declare(name=name, version=1)


@pytest.mark.parametrize("version", [None, 0, -1, True, 1.0, "1", 10**9])
def test_a_version_that_is_not_a_positive_integer_is_rejected(version: object) -> None:
    with pytest.raises(UsageError, match=r"has an invalid version.*: write version=1"):
        declare(name="a.b", version=version)


def test_a_key_that_is_not_a_field_is_rejected_and_the_error_lists_the_fields() -> None:
    with pytest.raises(UsageError, match="has key='id', which is not one of its fields: a"):
        declare(name="a.b", version=1, key="id")


def test_a_message_without_fields_cannot_have_a_key() -> None:
    with pytest.raises(UsageError, match="one of its fields: none"):

        class Empty(Event, name="a.b", version=1, key="id"):
            pass


def test_a_name_that_no_envelope_has_room_for_is_rejected() -> None:
    assert declare(name="a." + "b" * 198, version=1)
    with pytest.raises(UsageError, match="a message name of 201 characters: write at most 200"):
        declare(name="a." + "b" * 199, version=1)


def test_a_key_that_is_not_text_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"has key=\['id'\], which is not one of its fields"):
        declare(name="a.b", version=1, key=["id"])


def test_a_version_without_a_name_is_rejected() -> None:
    with pytest.raises(UsageError, match="has an invalid message name, None"):
        declare(version=1)


def test_a_message_must_derive_from_event_or_command() -> None:
    with pytest.raises(UsageError, match="derive it from Event or Command"):
        declare(Message, name="a.b", version=1)


def test_an_error_in_a_declaration_names_the_class() -> None:
    with pytest.raises(UsageError, match=rf"{__name__}.*Declared has an invalid version, 0"):
        declare(name="a.b", version=0)


def test_a_base_class_for_shared_fields_has_no_identity() -> None:
    class Shared(Event):
        order_id: int

    class Real(Shared, name="a.real", version=1, key="order_id"):
        pass

    assert identity_of(Real).key == "order_id"
    with pytest.raises(UsageError, match="Shared has no name: declare it as class Shared"):
        identity_of(Shared)


def test_a_subclass_of_a_message_needs_its_own_name() -> None:
    with pytest.raises(
        UsageError,
        match=r"Narrower derives from payments.paid v2 and has no name of its own: write",
    ):

        class Narrower(Paid):
            pass


Item = TypeVar("Item")


def test_a_parametrized_generic_message_keeps_its_name() -> None:
    class Listed(Event, Generic[Item], name="a.listed", version=1):
        item: Item

    assert identity_of(Listed[int]) == identity_of(Listed)


def test_a_message_is_immutable() -> None:
    paid = Paid(order_id=1)
    with pytest.raises(ValidationError, match="frozen"):
        paid.order_id = 2


def test_unknown_fields_are_ignored() -> None:
    assert Paid.model_validate({"order_id": 1, "unknown": True}) == Paid(order_id=1)


def test_a_field_may_be_named_like_a_class_keyword() -> None:
    class Labelled(Event, name="a.labelled", version=1, key="name"):
        name: str
        version: int
        key: str

    labelled = Labelled(name="n", version=7, key="k")
    assert (identity_of(Labelled).version, labelled.version, key_of(labelled)) == (1, 7, "n")


def test_the_key_is_the_text_of_the_key_field() -> None:
    assert key_of(Paid(order_id=17)) == "17"
    assert key_of(Pay(order_id=17)) is None


@pytest.mark.parametrize("key", [None, ""])
def test_a_message_with_an_empty_key_field_has_no_key(key: str | None) -> None:
    class Noted(Event, name="a.noted", version=1, key="note"):
        note: str | None

    assert key_of(Noted(note=key)) is None


class Colour(str, Enum):  # noqa: UP042  # unlike a StrEnum's, its str() is not its value
    RED = "red"


class Size(Enum):
    NONE = 0


@pytest.mark.parametrize(("member", "key"), [(Colour.RED, "red"), (Size.NONE, "0")])
def test_the_key_of_an_enum_field_is_the_value_of_the_member(member: Enum, key: str) -> None:
    class Painted(Event, name="a.painted", version=1, key="part"):
        part: Colour | Size

    assert key_of(Painted(part=member)) == key


def test_the_upcaster_decorator_returns_the_function_unchanged() -> None:
    message = declare(name="a.b", version=2)

    @message.upcaster(from_version=1)
    def add(data: dict[str, Any]) -> dict[str, Any]:
        return data | {"a": 1}

    assert add({}) == {"a": 1}
    assert message.__upcasters__ == {1: add}


@pytest.mark.parametrize("version", [0, -1, 3, 4])
def test_an_upcaster_must_start_at_an_older_version(version: int) -> None:
    with pytest.raises(UsageError, match=r"a.b v3 has from_version=.*between 1 and 2"):
        declare(name="a.b", version=3).upcaster(from_version=version)(dict)


def test_a_second_upcaster_from_the_same_version_is_rejected() -> None:
    message = declare(name="a.b", version=2)
    message.upcaster(from_version=1)(dict)
    with pytest.raises(UsageError, match=r"a.b v2 has two upcasters from version 1"):
        message.upcaster(from_version=1)(dict)


def test_upcasters_are_not_inherited_by_a_newer_version() -> None:
    old = declare(name="a.b", version=2)
    old.upcaster(from_version=1)(dict)

    class Newer(old, name="a.b", version=3):
        pass

    assert Newer.__upcasters__ == {}


def test_a_misspelt_keyword_of_a_message_is_named() -> None:
    with pytest.raises(UsageError, match=r"Odd has nam=, which a message does not take: write"):

        class Odd(Event, nam="a.b", version=1):  # type: ignore[call-arg]
            pass


def test_an_upcaster_of_a_message_that_has_no_older_version_says_what_comes_first() -> None:
    class First(Event, name="a.b", version=1):
        pass

    with pytest.raises(UsageError, match="there is no older version: raise version= "):
        First.upcaster(from_version=1)(dict)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_not_taken(number: float) -> None:
    class Measured(Event, name="a.measured", version=1):
        grams: float

    with pytest.raises(ValidationError, match=r"grams\n.*finite number"):
        Measured(grams=number)
