from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    RootModel,
    SerializeAsAny,
    computed_field,
    field_serializer,
    model_validator,
)

from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event, Message
from eventmesh.errors import MessageTooLarge, UnreadableMessage, UsageError
from eventmesh.testing.clock import ManualClock
from eventmesh.wire.envelope import (
    COPIED_TO_EFFECTS,
    MAX_ATTRIBUTE_BYTES,
    Envelope,
    check_envelope,
    check_size,
    open_envelope,
    seal,
    version_of,
)


class Paid(Event, name="payments.paid", version=2, key="order_id"):
    order_id: str
    amount: Decimal = Decimal("1.50")
    on: date = date(2026, 1, 1)


@Paid.upcaster(from_version=1)
def rename(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order"]}


class Keyed(Event, name="a.keyed", version=1, key="who"):
    who: str


class Keyless(Event, name="payments.keyless", version=1):
    note: str = ""


def sealed(message: Event, **options: Any) -> Envelope:
    return seal(message, source="payments", clock=ManualClock(), **options)


def changed(envelope: Envelope, data: bytes | None = None, **attributes: str) -> Envelope:
    """The envelope with these attributes replaced, and its data if given."""
    return Envelope({**envelope.attributes, **attributes}, envelope.data if data is None else data)


PAID = sealed(Paid(order_id="o-1"))


def test_a_sealed_message_has_the_attributes_of_cloudevents_and_of_eventmesh() -> None:
    assert PAID.attributes == {
        "specversion": "1.0",
        "id": "01900000-0000-7000-8000-000000000001",
        "source": "/payments",
        "type": "payments.paid",
        "dataschema": "urn:eventmesh:payments.paid:2",
        "datacontenttype": "application/json",
        "time": "2026-01-01T00:00:00Z",
        "correlationid": "01900000-0000-7000-8000-000000000001",
        "subject": "o-1",
        "partitionkey": "o-1",
    }


def test_fields_with_their_default_are_written() -> None:
    assert PAID.data == b'{"order_id":"o-1","amount":"1.50","on":"2026-01-01"}'


def test_fields_of_nested_models_are_written_whether_set_or_not() -> None:
    class Line(BaseModel):
        sku: str = "none"
        count: int = Field(1, serialization_alias="n")

        @computed_field
        @property
        def label(self) -> str:
            return f"{self.count} of {self.sku}"

    class Ordered(Event, name="a.ordered", version=1):
        lines: list[Line] = Field(default_factory=lambda: [Line()])
        first: Line | None = None
        by_name: dict[str, Line] = Field({"a": Line()}, alias="byName")

    line = {"sku": "none", "n": 1, "label": "1 of none"}
    expected = {"lines": [line], "first": None, "byName": {"a": line}}
    assert json.loads(sealed(Ordered()).data) == expected
    given = Ordered.model_validate({"lines": [{}], "byName": {"a": {}}})
    assert json.loads(sealed(given).data) == expected


class Renamed(Event, name="a.renamed", version=3, key="who"):
    who: str
    amount: Decimal
    on: date


@Renamed.downcaster(to_version=2)
def without_date(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "on"}


@Renamed.downcaster(to_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"owner": data["who"], "cents": int(Decimal(data["amount"]) * 100)}


RENAMED = Renamed(who="ada", amount=Decimal("1.50"), on=date(2026, 1, 1))


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (None, b'{"who":"ada","amount":"1.50","on":"2026-01-01"}'),
        (3, b'{"who":"ada","amount":"1.50","on":"2026-01-01"}'),
        (2, b'{"who":"ada","amount":"1.50"}'),
        (1, b'{"owner":"ada","cents":150}'),
    ],
)
def test_a_message_can_be_written_as_an_older_version(version: int | None, data: bytes) -> None:
    envelope = sealed(RENAMED, version=version)
    assert envelope.data == data
    assert envelope.attributes["dataschema"] == f"urn:eventmesh:a.renamed:{version or 3}"
    assert envelope.key == "ada"


def test_the_result_of_downcasters_must_be_json() -> None:
    class Broken(Event, name="a.broken", version=2):
        pass

    Broken.downcaster(to_version=1)(lambda data: {"when": object()})
    with pytest.raises(UsageError, match=r"downcasters of a.broken v2 .*version 1 is not JSON"):
        sealed(Broken(), version=1)


def test_text_that_utf_8_cannot_express_is_an_error_that_names_the_message() -> None:
    half_a_pair = "\ud800"  # of UTF-16, as json.loads accepts it alone
    with pytest.raises(UsageError, match=r"payments\.keyless cannot .* JSON.*surrogates"):
        sealed(Keyless(note=half_a_pair))


class Point(BaseModel):
    x: float
    label: str | None = None


class NamedPoint(Point):
    name: str = "p"


@dataclass
class Span:
    length: float


class Loose(BaseModel):
    x: float | None


class Tree(BaseModel):
    height: float
    branches: list[Tree] = []


class Rates(RootModel[dict[str, float]]):
    pass


class Circle(BaseModel):
    radius: float = Field(alias="r")


class Moved(BaseModel):
    """Its serializer returns another model, which writes itself."""

    to: Point

    @field_serializer("to")
    def as_point(self, to: Point) -> Any:
        return to


class Measured(Event, name="a.measured", version=1):
    points: tuple[Point, ...] = ()
    loose: Loose | None = None
    tree: Tree | None = None
    pair: tuple[int, Point] | None = None
    by_name: dict[str, Point] | None = None
    listed: Sequence[Point] = ()
    rates: Rates | None = None
    circle: Circle | None = None
    shape: Span | Circle | None = None
    note: str = ""


class Spanned(Event, name="a.measured", version=1):
    span: Span


class Defaulted(Event, name="a.measured", version=1):
    default: Point


class MovedTo(Event, name="a.measured", version=1):
    moved: Moved
    shown: SerializeAsAny[Point] | None = None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("measured", "field"),
    [
        (lambda x: Measured(points=(Point(x=1), Point(x=x))), "points.1.x"),
        (lambda x: Measured(points=(NamedPoint(x=x),)), "points.0.x"),
        (lambda x: Spanned(span=Span(x)), "span.length"),
        (lambda x: Measured(tree=Tree(height=1, branches=[Tree(height=x)])), "tree.branches.0"),
        (lambda x: Measured(pair=(1, Point(x=x))), "pair.1.x"),
        (lambda x: Measured(by_name={"a": Point(x=x)}), "by_name.a.x"),
        (lambda x: Measured(listed=[Point(x=x)]), "listed.0.x"),
        (lambda x: Measured(rates=Rates({"a": x})), "rates.a"),
        (lambda x: Measured(circle=Circle(r=x)), "circle.r"),
        (lambda x: Measured(shape=Span(x)), "shape.Span.length"),
        (lambda x: Defaulted(default=Point(x=x)), "default.x"),
        (lambda x: MovedTo(moved=Moved(to=Point(x=x))), "moved.to.x"),
        (lambda x: MovedTo(moved=Moved(to=Point(x=1)), shown=NamedPoint(x=x)), "shown.x"),
        (lambda x: Measured(note="NaN", pair=(1, Point(x=x))), "pair.1.x"),
    ],
    ids=[
        "model",
        "subclass",
        "dataclass",
        "recursive",
        "tuple",
        "dict",
        "sequence",
        "root",
        "alias",
        "union",
        "field-called-default",
        "serializer",
        "serialize-as-any",
        "text-like-a-float",
    ],
)
def test_a_float_that_json_cannot_express_is_an_error_that_names_the_field(
    measured: Callable[[float], Event], field: str, value: float
) -> None:
    with pytest.raises(
        UsageError, match=rf"^{field}\S* of a\.measured is infinite or not a number"
    ):
        sealed(measured(value))


def test_a_float_that_was_set_after_validation_is_an_error_too() -> None:
    class Finite(BaseModel, allow_inf_nan=False):
        x: float

    class Set(Event, name="a.set", version=1):
        finite: Finite

    message = Set(finite=Finite(x=1))
    message.finite.x = math.nan
    with pytest.raises(UsageError, match=r"^finite\.x of a\.set is infinite or not a number"):
        sealed(message)


def test_a_null_that_is_read_back_is_written() -> None:
    assert sealed(Measured(points=(Point(x=1),), loose=Loose(x=None)))
    assert b'"loose":{"x":null}' in sealed(Measured(loose=Loose(x=math.nan))).data


@pytest.mark.parametrize("note", ["", "NaN", "-Infinity"])
def test_a_message_with_floats_is_written_as_pydantic_writes_it(note: str) -> None:
    message = Measured(
        points=(Point(x=1), NamedPoint(x=1e300)),
        tree=Tree(height=0.1, branches=[Tree(height=2)]),
        listed=[Point(x=-0.0)],
        rates=Rates({"NaN": 1}),
        shape=Circle(r=2),
        note=note,
    )
    assert sealed(message).data == message.model_dump_json(by_alias=True).encode()


def test_data_without_infinite_floats_is_not_validated_when_it_is_written() -> None:
    """Validation would double the cost of publishing."""
    validated: list[object] = []

    class Watched(Event, name="a.watched", version=1):
        points: list[Point]

        @model_validator(mode="before")
        @classmethod
        def watch(cls, data: object) -> object:
            validated.append(data)
            return data

    message = Watched(points=[Point(x=1)])
    validated.clear()
    assert b"null" in sealed(message).data
    assert not validated


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("wrong", ["text", 5, [Loose(x=1)], [Span(1)]], ids=repr)
def test_a_value_of_a_wrong_type_is_written_as_pydantic_writes_it(wrong: object) -> None:
    message = Measured.model_construct(points=wrong)
    assert sealed(message).data == message.model_dump_json(by_alias=True).encode()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_float_in_a_value_of_a_wrong_type_is_an_error_too() -> None:
    with pytest.raises(UsageError, match=r"^points\.0\.x of a\.measured is infinite"):
        sealed(Measured.model_construct(points=(Loose(x=math.nan),)))


class Wrapped(BaseModel):
    extra: dict[str, Any] = {}
    share: float | None = None


class Free(Event, name="a.free", version=1):
    value: Any = None
    bare: dict = Field(default_factory=dict)  # type: ignore[type-arg]  # as users write it
    json_value: JsonValue = None
    wrapped: Wrapped | None = None


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    ("free", "why"),
    [
        (lambda: Free(value=math.nan), "value is infinite or not a number"),
        (lambda: Free(value=[{"a": math.inf}]), "value.0.a is infinite or not a number"),
        (lambda: Free(bare={"a": -math.inf}), "bare.a is infinite or not a number"),
        (
            lambda: Free(wrapped=Wrapped(extra={"a": math.nan})),
            "wrapped.extra.a is infinite or not a number",
        ),
        (lambda: Free(value=10**5_000), "not taken by parsers: number out of range"),
        (lambda: Free(json_value=10**5_000), "not taken by parsers: number out of range"),
        (lambda: Free(value=nested(220)), "not taken by parsers: recursion limit exceeded"),
    ],
    ids=["NaN", "in a list", "bare", "in a model", "digits", "digits of JsonValue", "nesting"],
)
def test_a_value_that_nobody_could_read_is_an_error_in_a_field_that_takes_anything(
    free: Callable[[], Free], why: str
) -> None:
    with pytest.raises(UsageError, match=rf"^Nobody could read a\.free: .*{re.escape(why)}"):
        sealed(free())


@pytest.mark.parametrize(
    "free",
    [
        Free(value={"a": [None, 1.5, "NaN"]}),
        Free(value=nested(150)),
        Free(value=10**4_000),
        Free(wrapped=Wrapped(share=math.nan)),
    ],
    ids=["null", "nesting", "digits", "a typed float"],
)
def test_what_can_be_read_is_written_in_a_field_that_takes_anything(free: Free) -> None:
    assert open_envelope(sealed(free), Free)


def test_a_key_that_a_database_could_not_store_is_an_error_that_names_the_message() -> None:
    """PostgreSQL stores no NUL; other databases do, and a service may move to PostgreSQL."""
    with pytest.raises(UsageError, match=r"a\.keyed .*NUL in its key 'nul\\x00key'"):
        sealed(Keyed(who="nul\0key"))


def test_a_foreign_message_may_have_any_key() -> None:
    """Its publisher may use other databases, and nobody here can change its key."""
    own = sealed(Keyed(who="ada"))
    foreign = Envelope({**own.attributes, "partitionkey": "nul\0key"}, b'{"who":"nul\\u0000key"}')
    assert foreign.key == "nul\0key"
    assert open_envelope(foreign, Keyed) == Keyed(who="nul\0key")


def test_what_is_copied_from_a_foreign_message_can_be_stored_by_databases() -> None:
    foreign = {**PAID.attributes, "id": "a\0", "correlationid": "b\0\ud800", "sagaid": "c\0"}
    effect = sealed(Keyless(), cause=Envelope(foreign, b""), extensions={"sagastep": "d\0"})
    copied = ("causationid", "correlationid", "sagaid", "sagastep")
    assert [effect.attributes[name] for name in copied] == [
        "a\\x00",
        "b\\x00\\ud800",
        "c\\x00",
        "d\\x00",
    ]


def test_a_version_without_upcasters_is_read_if_the_judge_allows_it() -> None:
    newer = {**PAID.attributes, "dataschema": "urn:eventmesh:payments.paid:9"}
    asked: list[object] = []

    def judge(model: type[Message], version: int) -> str | None:
        asked.append((model, version))
        return "no" if len(asked) > 1 else None

    assert open_envelope(Envelope(newer, PAID.data), Paid, judge) == Paid(order_id="o-1")
    with pytest.raises(UnreadableMessage, match="no"):
        open_envelope(Envelope(newer, PAID.data), Paid, judge)
    assert asked == [(Paid, 9)] * 2


def test_fields_are_written_with_their_aliases() -> None:
    class Aliased(Event, name="a.aliased", version=1):
        order_id: int = Field(alias="orderId")

    envelope = sealed(Aliased(orderId=1))
    assert envelope.data == b'{"orderId":1}'
    assert open_envelope(envelope, Aliased) == Aliased(orderId=1)


def test_a_message_without_key_has_neither_subject_nor_partition_key() -> None:
    envelope = sealed(Keyless())
    assert envelope.key is None
    assert not {"subject", "partitionkey"} & envelope.attributes.keys()


def test_a_message_id_is_a_uuid_of_version_7() -> None:
    envelope = seal(Keyless(), source="a", clock=SystemClock())
    assert UUID(envelope.id).version == 7


def test_effects_keep_the_correlation_id_and_name_their_cause() -> None:
    clock = ManualClock()
    first = seal(Keyless(), source="a", clock=clock)
    second = seal(Keyless(), source="a", clock=clock, cause=first)
    third = seal(Keyless(), source="a", clock=clock, cause=second)
    assert first.correlation_id == second.correlation_id == third.correlation_id == first.id
    assert "causationid" not in first.attributes
    assert (second.attributes["causationid"], third.attributes["causationid"]) == (
        first.id,
        second.id,
    )


def test_the_id_of_a_cause_without_correlation_id_becomes_the_correlation_id() -> None:
    cause = Envelope({"id": "foreign"}, b"")
    assert sealed(Keyless(), cause=cause).correlation_id == "foreign"


def test_only_saga_and_trace_attributes_are_copied_from_the_cause() -> None:
    cause = changed(PAID, myextension="x", **dict.fromkeys(COPIED_TO_EFFECTS, "copied"))
    effect = sealed(Keyless(), cause=cause)
    assert [effect.attributes[name] for name in COPIED_TO_EFFECTS] == ["copied"] * 4
    assert "myextension" not in effect.attributes
    assert effect.key is None


def test_given_extensions_take_precedence_over_copied_ones() -> None:
    cause = changed(PAID, sagastep="old")
    effect = sealed(Keyless(), cause=cause, extensions={"sagastep": "new"})
    assert effect.attributes["sagastep"] == "new"


def test_data_larger_than_the_limit_is_rejected() -> None:
    message = Keyless(note="x" * 100)
    size = len(message.model_dump_json())
    sealed(message, max_bytes=size)
    with pytest.raises(
        MessageTooLarge, match=f"payments.keyless.*{size} bytes.*limit is {size - 1}"
    ):
        sealed(message, max_bytes=size - 1)


@given(st.text(min_size=1, max_size=300))
@example("x" * 255)
@example("x" * 256)
@example("🦀" * 63)
@example("🦀" * 64)
def test_an_attribute_is_rejected_exactly_when_it_is_too_long_for_amqp(key: str) -> None:
    envelope = Envelope({"type": "a.b", "subject": key}, b"")
    if len(key.encode()) <= MAX_ATTRIBUTE_BYTES:
        check_size(envelope, 0)
    else:
        with pytest.raises(UsageError, match=r"'subject' of a.b has .* Choose a shorter key"):
            check_size(envelope, 0)


messages = st.builds(
    Paid,
    order_id=st.text(min_size=1, max_size=60),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    on=st.dates(),
)


@given(messages)
def test_a_sealed_message_can_be_opened_unchanged(message: Paid) -> None:
    envelope = sealed(message)
    check_envelope(envelope)
    assert envelope.key == message.order_id
    assert open_envelope(envelope, Paid) == message


def test_an_older_version_is_upcast_to_the_version_of_the_model() -> None:
    old = changed(PAID, b'{"order": "o-9"}', dataschema="urn:eventmesh:payments.paid:1")
    assert open_envelope(old, Paid) == Paid(order_id="o-9")


def test_a_strict_model_reads_an_upcast_version_like_its_own() -> None:
    class Strict(Event, name="a.strict", version=2, strict=True):
        on: date

    Strict.upcaster(from_version=1)(dict)
    envelope = sealed(Strict(on=date(2026, 1, 2)))
    old = changed(envelope, dataschema="urn:eventmesh:a.strict:1")
    assert open_envelope(old, Strict) == open_envelope(envelope, Strict)


class Priced(Event, name="a.priced", version=2):
    price: Decimal


@Priced.upcaster(from_version=1)
def as_decimal(data: dict[str, Any]) -> dict[str, Any]:
    return {"price": Decimal(data["price"])}


def test_an_upcaster_may_return_values_that_are_not_json() -> None:
    old = changed(
        sealed(Priced(price=Decimal(1))), b'{"price":"1.50"}', dataschema="urn:eventmesh:a.priced:1"
    )
    assert open_envelope(old, Priced) == Priced(price=Decimal("1.50"))


def test_a_message_is_unreadable_if_its_upcaster_returns_an_unsupported_object() -> None:
    class Broken(Event, name="a.broken", version=2):
        part: str

    Broken.upcaster(from_version=1)(lambda data: {"part": object()})
    old = changed(sealed(Broken(part="x")), dataschema="urn:eventmesh:a.broken:1")
    with pytest.raises(UnreadableMessage, match=r"the data could not be read as a.broken v2: "):
        open_envelope(old, Broken)


@given(st.integers())
def test_an_integer_of_any_size_survives_upcasting(number: int) -> None:
    class Counted(Event, name="a.counted", version=2):
        number: int

    Counted.upcaster(from_version=1)(dict)
    envelope = sealed(Counted(number=number))
    old = changed(envelope, dataschema="urn:eventmesh:a.counted:1")
    assert open_envelope(old, Counted) == open_envelope(envelope, Counted) == Counted(number=number)


@pytest.mark.parametrize(
    ("version", "data", "reason"),
    [
        (2, b"", "the data is not a valid payments.paid v2: data: Invalid JSON"),
        (2, b"\xff\xfe", "the data is not a valid payments.paid v2: data: Invalid JSON"),
        (2, b"[]", "the data is not a valid payments.paid v2: data: "),
        (2, b"{}", "the data is not a valid payments.paid v2: order_id: Field required"),
        (1, b"", "the data is not JSON"),
        (1, b"\xff\xfe", "the data is not JSON"),
        (1, b"[]", "the data is JSON, but not an object"),
        (1, b"{}", "the upcaster of payments.paid from version 1 failed: KeyError"),
        (1, b'{"order": 5}', "the data is not a valid payments.paid v2: order_id: "),
        (3, b"{}", "version 3 of payments.paid is not known here"),
    ],
)
def test_unreadable_data_has_a_reason(version: int, data: bytes, reason: str) -> None:
    envelope = changed(PAID, data, dataschema=f"urn:eventmesh:payments.paid:{version}")
    with pytest.raises(UnreadableMessage, match=reason):
        open_envelope(envelope, Paid)


@given(st.binary(), st.sampled_from([1, 2]))
def test_random_data_raises_only_unreadable_message(data: bytes, version: int) -> None:
    envelope = changed(PAID, data, dataschema=f"urn:eventmesh:payments.paid:{version}")
    with pytest.raises(UnreadableMessage):
        open_envelope(envelope, Paid)


@pytest.mark.parametrize(
    "dataschema",
    [
        "",
        "https://example.org/schema.json",
        "urn:eventmesh:payments.paid",
        "urn:eventmesh:payments.paid:",
        "urn:eventmesh:payments.paid:0",
        "urn:eventmesh:payments.paid:-1",
        "urn:eventmesh:payments.paid:two",
        "urn:eventmesh:payments.paid:1 ",
        "urn:eventmesh:payments.other:1",
        "urn:eventmesh:payments.paid:" + "9" * 5000,
    ],
)
def test_a_dataschema_without_a_version_of_the_message_is_unreadable(dataschema: str) -> None:
    with pytest.raises(UnreadableMessage, match=r"urn:eventmesh:payments.paid:<version> was"):
        version_of(changed(PAID, dataschema=dataschema))


def test_the_version_is_read_from_the_dataschema() -> None:
    assert version_of(PAID) == 2
    assert version_of(changed(PAID, dataschema="urn:eventmesh:payments.paid:120")) == 120


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_a_message_without_a_required_attribute_is_not_a_cloud_event(name: str) -> None:
    with pytest.raises(UnreadableMessage, match=f"not a CloudEvents message: {name} missing"):
        check_envelope(changed(PAID, **{name: ""}))


def test_the_error_names_all_missing_attributes() -> None:
    with pytest.raises(UnreadableMessage, match="specversion, id, source, type missing"):
        check_envelope(Envelope({}, b""))


def test_another_version_of_cloudevents_is_unreadable() -> None:
    with pytest.raises(UnreadableMessage, match=r"CloudEvents version '0.3' is unknown"):
        check_envelope(changed(PAID, specversion="0.3"))


def test_an_empty_envelope_has_empty_properties() -> None:
    empty = Envelope({}, b"")
    assert (empty.id, empty.name, empty.key, empty.correlation_id, empty.time) == (
        "",
        "",
        None,
        "",
        None,
    )


def test_the_partition_key_takes_precedence_over_the_subject() -> None:
    assert Envelope({"subject": "s", "partitionkey": "p"}, b"").key == "p"
    assert Envelope({"subject": "s"}, b"").key == "s"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-01T10:00:00Z", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        ("2026-01-01T12:00:00.5+02:00", datetime(2026, 1, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
    ],
)
def test_an_invalid_time_is_read_as_none(text: str, time: datetime | None) -> None:
    assert changed(PAID, time=text).time == time
