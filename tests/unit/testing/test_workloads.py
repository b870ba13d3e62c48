"""What `from_message` generates arrives as it was sent: it is valid by the frozen schema and read
back equal; and what cannot be generated is an error that names the field and what to give."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    HttpUrl,
    Json,
    PastDate,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import from_json
from typing_extensions import TypedDict

from eventmesh import Command, Event
from eventmesh.clock import SystemClock
from eventmesh.compat import accepts
from eventmesh.compat.pydantic_models.schemas import plain, writer_schema
from eventmesh.contracts.locks.freezing import freeze, lock_of
from eventmesh.contracts.locks.lock_folder import lock_path, read_locks
from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.testing.workloads import from_message, samples
from eventmesh.wire.envelope import MAX_ATTRIBUTE_BYTES, open_envelope, seal
from services.inventory.service import service as inventory
from services.orders.service import service as orders
from services.payments import contracts as payments_contracts
from services.payments.service import service as payments
from services.shipping.service import service as shipping

SHOP = Path(__file__).parents[3] / "schemas"
OWNED = [each for it in (orders, payments, inventory, shipping) for each in it.registry.owned()]

text = Annotated[str, StringConstraints(min_length=1, max_length=5)]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Card(BaseModel):
    kind: Literal["card"]
    number: Annotated[str, StringConstraints(pattern=r"^\d{4}-[A-F]{2}$")]


class Cash(BaseModel):
    kind: Literal["cash"]
    given: Annotated[Decimal, Field(max_digits=6, decimal_places=2, gt=0)]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []
    nearest: Tree | None = None


class Point(NamedTuple):
    x: int
    y: float


class Labels(TypedDict, total=False):
    name: str
    count: int


class Plain(Event, name="zoo.plain", version=1):
    a: str
    b: int
    c: float
    d: bool
    e: None
    f: Any
    g: bytes


class Bounded(Event, name="zoo.bounded", version=1, key="a"):
    a: text
    b: Annotated[int, Field(gt=0, lt=1_000, multiple_of=7)]
    c: Annotated[float, Field(ge=0, lt=1)]
    d: Annotated[list[int], Field(min_length=2, max_length=3)]
    e: Annotated[Decimal, Field(ge=Decimal("0.01"), le=Decimal("0.05"))]
    f: Annotated[Decimal, Field(multiple_of=Decimal("0.25"), gt=-1, lt=1)]
    g: Annotated[str, StringConstraints(min_length=300)]
    h: Annotated[dict[str, int], Field(min_length=1, max_length=2)]
    i: Annotated[Decimal, Field(max_digits=3)]
    j: Annotated[int, Field(ge=2**70)]
    k: Annotated[Decimal, Field(max_digits=40, decimal_places=2, ge=Decimal(10) ** 37)]


class Timed(Event, name="zoo.timed", version=1):
    a: datetime
    b: AwareDatetime
    c: date
    d: time
    e: timedelta
    f: PastDate


class Formats(Event, name="zoo.formats", version=1, key="a"):
    a: uuid.UUID
    b: EmailStr
    c: HttpUrl
    d: AnyUrl
    e: IPv4Address
    f: IPv6Network
    g: Base64Bytes
    h: Path
    i: SecretStr


class Choices(Event, name="zoo.choices", version=1):
    a: Colour
    b: Size
    c: Literal["x", 2, None]
    d: Annotated[Card | Cash, Field(discriminator="kind")]
    e: int | text | None
    f: list[Card | Cash]
    g: Annotated[int, Field(ge=3)] | None = None


class Containers(Event, name="zoo.containers", version=1):
    a: list[str]
    b: set[int]
    c: frozenset[Colour]
    d: tuple[int, str]
    e: tuple[int, ...]
    f: dict[str, Decimal]
    g: dict[int, str]
    h: dict[uuid.UUID, Tree]
    i: dict[Colour, int]
    j: Labels
    k: Point


class Recursive(Event, name="zoo.recursive", version=1):
    tree: Tree


class Aliased(Command, name="zoo.aliased", version=1, key="order_id"):
    model_config = ConfigDict(populate_by_name=True)

    order_id: Annotated[int, Field(alias="orderId")]
    note: str = "none"


class Strict(Event, name="zoo.strict", version=1):
    model_config = ConfigDict(strict=True)

    a: datetime
    b: uuid.UUID
    c: Decimal
    d: tuple[int, ...]


class Picky(Event, name="zoo.picky", version=1):
    even: int
    words: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
    low: int
    high: int

    @field_validator("even")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value

    @model_validator(mode="after")
    def is_in_order(self) -> Picky:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


ZOO = [
    Plain,
    Bounded,
    Timed,
    Formats,
    Choices,
    Containers,
    Recursive,
    Aliased,
    Strict,
    Picky,
]


def arrives_as_sent(message: Message, schema: dict[str, Any]) -> None:
    """Check that a message is valid by a schema, and read back equal."""
    envelope = seal(message, source="tests", clock=SystemClock())
    assert accepts(plain(schema))(from_json(envelope.data)), envelope.data
    assert open_envelope(envelope, type(message)) == message


def check_each(strategy: st.SearchStrategy[Any], check: Callable[[Any], bool | None]) -> None:
    """Generate values; `check` asserts something of each, or returns whether it is right."""

    @settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def check_one(value: Any) -> None:
        assert check(value) is not False

    check_one()


def any_of(strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool]) -> Any:
    """A value that meets the condition; fails where none is found."""
    searching = settings(max_examples=500, derandomize=True, phases=[Phase.generate])
    return find(strategy, condition, settings=searching)


@pytest.mark.parametrize("model", OWNED, ids=lambda model: model.__name__)
def test_each_message_of_the_shop_is_valid_by_its_frozen_schema(model: type[Message]) -> None:
    [lock] = read_locks(SHOP).of(model.__identity__.name)[model.__identity__.version]
    check_each(from_message(model, SHOP), lambda it: arrives_as_sent(it, lock.writer))


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__)
def test_each_model_of_the_zoo_is_valid_by_its_frozen_schema(
    model: type[Message], tmp_path: Path
) -> None:
    freeze([model], tmp_path)
    lock = lock_of(model, tmp_path)
    check_each(from_message(model, tmp_path), lambda it: arrives_as_sent(it, lock.writer))


@pytest.mark.parametrize("model", [Plain, Aliased], ids=lambda model: model.__name__)
def test_without_a_frozen_schema_it_is_valid_by_that_of_the_model(
    model: type[Message], tmp_path: Path
) -> None:
    schema = writer_schema(model)
    check_each(from_message(model, tmp_path), lambda it: arrives_as_sent(it, schema))


def test_a_model_of_another_service_is_read_from_what_the_owner_sends() -> None:
    check_each(
        from_message(payments_contracts.OrderPlaced, SHOP),
        lambda it: isinstance(it, payments_contracts.OrderPlaced),
    )


@pytest.mark.parametrize(
    ("model", "condition"),
    [
        (Bounded, lambda it: it.b > 900 and len(it.d) == 3),
        (Bounded, lambda it: it.e == Decimal("0.05")),
        (Choices, lambda it: isinstance(it.d, Cash) and it.d.given > 100 and it.g is None),
        (Choices, lambda it: it.a is Colour.BLUE and it.e is None and len(it.f) > 2),
        (Containers, lambda it: len(it.g) > 1 and len(it.h) > 0 and "count" in it.j),
        (Recursive, lambda it: any(child.children for child in it.tree.children)),
        (Recursive, lambda it: it.tree.nearest is not None and it.tree.nearest.children),
        (Timed, lambda it: it.b.utcoffset() != timedelta(0) and it.d.microsecond > 0),
        (Formats, lambda it: it.c.path != "/" and it.g != b""),
        (Plain, lambda it: isinstance(it.f, dict) and it.f and it.b < -1_000_000),
    ],
    ids=(lambda value: value.__name__ if isinstance(value, type) else "condition"),
)
def test_what_the_schema_allows_is_found(
    model: type[Message], condition: Callable[[Any], bool], tmp_path: Path
) -> None:
    assert condition(any_of(from_message(model, tmp_path), condition))


def test_the_first_instance_is_a_plain_one(tmp_path: Path) -> None:
    assert any_of(from_message(Recursive, tmp_path), lambda _: True).tree == Tree(value=0)


def test_points_in_time_have_a_time_zone_where_they_may_have_one(tmp_path: Path) -> None:
    def check(event: Timed) -> None:
        assert event.a.tzinfo is not None

    check_each(from_message(Timed, tmp_path), check)


def test_text_can_be_stored_by_every_database(tmp_path: Path) -> None:
    def check(event: Plain) -> None:
        assert "\0" not in event.a
        assert -(2**63) <= event.b < 2**63

    check_each(from_message(Plain, tmp_path), check)


def test_a_key_has_a_length_that_every_broker_takes(tmp_path: Path) -> None:
    class Named(Event, name="zoo.named", version=1, key="name"):
        name: Annotated[str, StringConstraints(min_length=100)]

    def check(event: Named) -> None:
        assert len(event.name.encode()) <= MAX_ATTRIBUTE_BYTES

    check_each(from_message(Named, tmp_path), check)


# Values that are given ---------------------------------------------------------------------------


def test_a_field_is_taken_from_the_strategy_that_is_given(tmp_path: Path) -> None:
    chosen = uuid.uuid4()
    numbers = from_message(Card, number=st.just("1234-AB"))
    strategy = from_message(Choices, tmp_path, d=numbers, b=st.just(Size.LARGE))

    def check(event: Choices) -> None:
        assert event.d == Card(kind="card", number="1234-AB")
        assert event.b is Size.LARGE

    check_each(strategy, check)
    check_each(
        from_message(Formats, tmp_path, a=st.just(chosen), g=st.just(b"aGk=")),
        lambda it: (it.a, it.g) == (chosen, b"hi"),
    )


def test_a_field_is_given_by_its_name_in_python(tmp_path: Path) -> None:
    def check(command: Aliased) -> None:
        assert command.order_id == 7

    check_each(from_message(Aliased, tmp_path, order_id=st.just(7)), check)


def test_a_field_that_does_not_exist_is_reported() -> None:
    with pytest.raises(UsageError, match="Card has no field 'nummer'; it has: kind, number"):
        from_message(Card, nummer=st.text())


def test_a_value_instead_of_a_strategy_is_reported() -> None:
    with pytest.raises(UsageError, match=r"not a strategy: write number=st.just\('1'\)"):
        from_message(Card, number="1")  # type: ignore[arg-type]


def test_values_that_the_model_refuses_are_reported() -> None:
    with pytest.raises(UsageError, match=r"given for the field 'number' of Card .*match pattern"):
        check_each(from_message(Card, number=st.just("12")), lambda _: None)


def test_values_that_only_the_frozen_schema_refuses_are_reported(tmp_path: Path) -> None:
    class Ordered(Event, name="zoo.ordered", version=1):
        count: Annotated[int, Field(le=10)]

    freeze([Ordered], tmp_path)

    class Wider(Event, name="zoo.ordered", version=1):
        count: int

    check_each(from_message(Wider, tmp_path), lambda it: it.count <= 10)
    with pytest.raises(UsageError, match=r"given for the field 'count' .*schema does not allow"):
        check_each(from_message(Wider, tmp_path, count=st.just(11)), lambda _: None)


def test_values_that_are_not_json_are_reported() -> None:
    with pytest.raises(UsageError, match=r"given for the field 'number' of Card .*not JSON"):
        check_each(from_message(Card, number=st.builds(object)), lambda _: None)


# What cannot be generated ------------------------------------------------------------------------


def test_a_validator_that_refuses_nearly_everything_is_reported_with_its_field(
    tmp_path: Path,
) -> None:
    class Checked(Event, name="zoo.checked", version=1):
        note: str
        iban: str

        @field_validator("iban")
        @classmethod
        def is_valid(cls, value: str) -> str:
            if value != "DE02120300000000202051":
                raise ValueError("the check digits are wrong")
            return value

    with pytest.raises(UsageError) as raised:
        check_each(from_message(Checked, tmp_path), lambda _: None)
    assert str(raised.value) == (
        "Checked refuses each of 500 documents of its schema, mostly for its field 'iban': Value "
        "error, the check digits are wrong. Give a strategy of values that it accepts: "
        "from_message(Checked, iban=…)."
    )
    given_iban = from_message(Checked, tmp_path, iban=st.just("DE02120300000000202051"))
    check_each(given_iban, lambda it: it.iban[:2] == "DE")


def test_a_model_that_refuses_nearly_everything_as_a_whole_is_reported(tmp_path: Path) -> None:
    class Summed(Event, name="zoo.summed", version=1):
        total: int
        parts: list[int]

        @model_validator(mode="after")
        def adds_up(self) -> Summed:
            raise ValueError("the parts do not add up")

    with pytest.raises(UsageError, match=r"mostly for the whole: Value error, the parts do not"):
        check_each(from_message(Summed, tmp_path), lambda _: None)


def test_a_field_of_few_values_that_are_all_refused_is_reported(tmp_path: Path) -> None:
    class Never(Event, name="zoo.never", version=1):
        note: str
        flag: bool

        @field_validator("flag")
        @classmethod
        def fails(cls, value: bool) -> bool:
            raise ValueError("is not possible")

    with pytest.raises(UsageError, match=r"mostly for its field 'flag': Value error, is not poss"):
        check_each(from_message(Never, tmp_path), lambda _: None)


def test_a_field_that_the_frozen_schema_does_not_have_is_reported(tmp_path: Path) -> None:
    class Before(Event, name="zoo.grown", version=1):
        a: int

    class After(Event, name="zoo.grown", version=1):
        a: int
        b: int

    class Part(Event, name="zoo.grown", version=1):
        b: int = 0

    freeze([Before], tmp_path)
    with pytest.raises(UsageError, match=r"'b' of After is not in its frozen schema: Field requi"):
        check_each(from_message(After, tmp_path), lambda _: None)
    check_each(from_message(Part, tmp_path, b=st.just(7)), lambda it: it.b == 7)


def test_a_validator_that_raises_anything_is_reported(tmp_path: Path) -> None:
    class Broken(Event, name="zoo.broken", version=1):
        name: str

        @field_validator("name")
        @classmethod
        def fails(cls, value: str) -> str:
            raise ZeroDivisionError(value)

    with pytest.raises(UsageError, match=r"mostly for the whole: ZeroDivisionError"):
        check_each(from_message(Broken, tmp_path), lambda _: None)


def test_a_field_that_the_model_does_not_read_as_it_writes_it_is_reported(tmp_path: Path) -> None:
    class Packed(Event, name="zoo.packed", version=1):
        numbers: Json[list[int]]

    with pytest.raises(UsageError, match=r"mostly for its field 'numbers': JSON input should be"):
        check_each(from_message(Packed, tmp_path), lambda _: None)


def test_a_strategy_is_shown_as_it_is_written() -> None:
    assert "from_message(Card, number=…)" in repr(from_message(Card, number=st.text()))


def test_a_validator_that_refuses_simple_values_does_not_hide_what_a_test_finds(
    tmp_path: Path,
) -> None:
    class Named(Event, name="zoo.named", version=1):
        name: str
        count: int

        @field_validator("name", "count")
        @classmethod
        def is_long(cls, value: Any) -> Any:
            if len(str(value)) < 3:
                raise ValueError("is too short")
            return value

    def fails(event: Named) -> None:
        assert event.count < 0, "found"

    with pytest.raises(AssertionError, match="found"):
        check_each(from_message(Named, tmp_path), fails)


def test_a_pattern_that_python_does_not_know_is_reported(tmp_path: Path) -> None:
    class Lettered(Event, name="zoo.lettered", version=1):
        name: Annotated[str, StringConstraints(pattern=r"^\p{Lu}+$")]

    with pytest.raises(UsageError, match=r"The field 'name' of Lettered cannot be generated: Pyth"):
        check_each(from_message(Lettered, tmp_path), lambda _: None)
    check_each(from_message(Lettered, tmp_path, name=st.just("ÄÖ")), lambda it: it.name == "ÄÖ")


def test_a_model_without_a_finite_value_is_reported(tmp_path: Path) -> None:
    class Endless(BaseModel):
        next: Endless

    class Chained(Event, name="zoo.chained", version=1):
        first: Endless

    with pytest.raises(UsageError, match="'first' of Chained cannot be generated: each of its val"):
        check_each(from_message(Chained, tmp_path), lambda _: None)


def test_a_broken_lock_file_is_reported(tmp_path: Path) -> None:
    freeze([Plain], tmp_path)
    path = lock_path(tmp_path, Plain)
    path.write_text(path.read_text().replace("zoo.plain", "zoo.plane"))
    for strategy in (from_message(Plain, tmp_path), samples(Plain, tmp_path)):
        with pytest.raises(UsageError, match=r"v1.json was edited.*Restore the lock file"):
            check_each(strategy, lambda _: None)


# Samples -----------------------------------------------------------------------------------------


def test_samples_are_those_in_the_lock_files(tmp_path: Path) -> None:
    [lock] = freeze([Aliased], tmp_path)
    found = set()
    check_each(samples(Aliased, tmp_path), lambda it: found.add(it.model_dump_json()))
    assert found == {Aliased.model_validate(each).model_dump_json() for each in lock.samples}


def test_a_message_without_samples_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No sample of Plain is frozen: run `eventmesh schema fr"):
        check_each(samples(Plain, tmp_path), lambda _: None)


def test_a_lock_file_without_samples_is_reported(tmp_path: Path) -> None:
    class Endless(Event, name="zoo.endless", version=1):
        name: str

        @field_validator("name")
        @classmethod
        def fails(cls, value: str) -> str:
            raise ValueError(value)

    freeze([Endless], tmp_path)
    with pytest.raises(UsageError, match=r"The lock files of Endless have no samples: use from_m"):
        check_each(samples(Endless, tmp_path), lambda _: None)


def test_a_sample_that_the_model_cannot_read_is_reported(tmp_path: Path) -> None:
    freeze([Plain], tmp_path)

    class Narrower(Event, name="zoo.plain", version=1):
        a: int

    with pytest.raises(UsageError, match=r"Narrower cannot read a sample in .*v1.json: Input"):
        check_each(samples(Narrower, tmp_path), lambda _: None)


def test_without_a_folder_the_one_of_the_settings_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze([Plain], tmp_path)
    monkeypatch.setenv("EVENTMESH_SCHEMAS", str(tmp_path))
    check_each(samples(Plain) | from_message(Plain), lambda it: isinstance(it, Plain))
    assert json.loads(lock_path(tmp_path, Plain).read_text())["name"] == "zoo.plain"
