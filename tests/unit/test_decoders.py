"""Fuzzing the decoders of what is read from a broker or a lock file.

An input is either decoded or reported as unreadable; no decoder raises anything else. Inputs are
random, or valid ones with small changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from eventmesh.clock import SystemClock
from eventmesh.contracts.locks.freezing import lock_of
from eventmesh.contracts.locks.lock_file import (
    BrokenLock,
    Lock,
    parse,
    read_lock,
    write_lock,
    write_status,
)
from eventmesh.contracts.message import Event
from eventmesh.errors import UsageError
from eventmesh.runtime.consuming.delivery import read
from eventmesh.transports.base import DeadLetter, Delivery, Subscription
from eventmesh.transports.census import Census
from eventmesh.transports.outcome import Dead
from eventmesh.transports.rabbitmq.dead_letters import letter_of
from eventmesh.transports.rabbitmq.received import ReceivedMessage
from eventmesh.transports.redis.entries import (
    dead_letter,
    dead_letter_fields,
    pack_parcel,
    read_entry,
    read_parcel,
)
from eventmesh.transports.sqlite import rows as sqlite_rows
from eventmesh.wire.cloudevents import from_fields, from_headers, pack, to_fields, to_headers
from eventmesh.wire.envelope import Envelope, seal

EXAMPLES = 40
SOAK_EXAMPLES = 12_000
"""Inputs to each of the nine decoders: more than 100,000 in total."""

CLOCK = SystemClock()
AUDIT = Subscription("audit.note", ("payments.paid",))

Fields = Sequence[bytes]


class Paid(Event, name="payments.paid", version=1, key="order"):
    order: str
    cents: int = 0


VALID = seal(Paid(order="a", cents=5), source="payments", clock=CLOCK)


# Inputs

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
json_values = values.map(
    lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
)
attribute_names = st.sampled_from([*VALID.attributes, "data", "x"]) | st.text(max_size=9)
numbers = st.sampled_from(
    [b"0", b"1", b"-1", b"+1", b"1_0", b"9" * 30, b"9" * 5000, b"1e3", b"nan"]
)


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid input with some bytes replaced, removed, repeated or cut off."""
    raw = valid
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 8)))
        new = draw(st.binary(max_size=4) | st.just(raw[start:end] * 2) | json_values | numbers)
        raw = raw[:start] + new + raw[draw(st.sampled_from([end, len(raw)])) :]
    return raw


heads = st.binary(max_size=30) | numbers | st.just(b"1 x")
envelopes = (
    st.binary(max_size=60)
    | st.tuples(json_values, st.binary(max_size=9)).map(b"\n".join)
    | st.dictionaries(attribute_names, values).map(
        lambda attributes: json.dumps(attributes).encode() + b"\n{}"
    )
    | mutated(pack(VALID))
)
parcels = st.tuples(heads, envelopes).map(b"\n".join) | mutated(pack_parcel(VALID, 2, CLOCK))


def fields_of(fields: dict[str, str | bytes]) -> list[bytes]:
    return [
        part if isinstance(part, bytes) else part.encode()
        for pair in fields.items()
        for part in pair
    ]


@st.composite
def entries(draw: st.DrawFn, *names: bytes, contents: st.SearchStrategy[bytes]) -> Fields:
    """The fields of an entry in Redis; there is at least one."""
    field = st.tuples(
        st.sampled_from([*names, b"data", b"id"]) | st.binary(max_size=9),
        contents | st.binary(max_size=9),
    )
    return [part for pair in draw(st.lists(field, min_size=1, max_size=6)) for part in pair]


@st.composite
def changed_entries(draw: st.DrawFn, valid: Fields) -> Fields:
    """A valid entry with some names or values mutated."""
    fields = list(valid)
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(fields) - 1))
        fields[index] = draw(mutated(fields[index]))
    return fields


LETTER = [
    part if isinstance(part, bytes) else str(part).encode()
    for part in dead_letter_fields(Delivery(VALID, attempt=3), Dead("no", "Traceback: ü"), CLOCK)
]
letters = entries(
    b"envelope", b"reason", b"error", b"attempts", b"diedat", contents=envelopes | numbers
) | changed_entries(LETTER)
entry_ids = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)).map(
    lambda parts: b"%d-%d" % parts
)

HEADER = ContentHeader(
    body_size=2,
    properties=Basic.Properties(
        content_type="application/json",
        message_id=VALID.id,
        headers={
            **to_headers(VALID),
            "x-delivery-count": 3,
            "x-eventmesh-attempt": 2,
            "a": [1, {"b": None}],
        },
    ),
).marshal()
content_headers = st.binary(max_size=80) | mutated(HEADER)

columns = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | envelopes

LOCK = lock_of(Paid)


# Decoders


def check_readable(envelope: Envelope) -> None:
    """The envelope has values of the declared types, and can be stored again."""
    assert isinstance(envelope.data, bytes)
    assert all(isinstance(value, str) for value in envelope.attributes.values())
    assert envelope.unique_id
    assert envelope.time is None or envelope.time.isoformat()
    pack(envelope)
    fields_of(to_fields(envelope))


def check_delivery(delivery: Delivery) -> None:
    """The delivery can be handled or dead-lettered, and its dead letter can be read back."""
    check_readable(delivery.envelope)
    assert delivery.attempt >= 1
    outcome = read(delivery, {"payments.paid": Paid}, 20)
    if delivery.unreadable:
        assert isinstance(outcome, Dead)
        assert delivery.unreadable in outcome.reason
    if isinstance(outcome, Dead):
        fields = [
            part if isinstance(part, bytes) else str(part).encode()
            for part in dead_letter_fields(delivery, outcome, CLOCK)
        ]
        letter = dead_letter(AUDIT.name, (b"1-0", fields))
        assert letter.envelope == delivery.envelope
        assert (letter.reason, letter.attempts) == (outcome.reason, delivery.attempt)


def check_letter(letter: DeadLetter) -> None:
    check_readable(letter.envelope)
    assert isinstance(letter.reason, str)
    assert isinstance(letter.error, str)
    assert letter.attempts >= 1
    assert letter.died_at.astimezone(UTC).isoformat()
    letter.reason.encode()
    letter.error.encode()


def read_redis_entry(fields: Fields) -> None:
    check_delivery(Delivery.of(read_entry(fields), 1, 1, None))


def read_redis_retry(fields: Fields) -> None:
    envelope, attempt = read_parcel(fields)
    delivery = Delivery.of(envelope, attempt, 1, None)
    check_delivery(delivery)
    if delivery.unreadable:
        assert delivery.envelope.data == fields[1], "the raw bytes are kept"


def read_redis_dead_letter(entry: tuple[bytes, Fields]) -> None:
    check_letter(dead_letter(AUDIT.name, entry))


def read_amqp_message(content_header: bytes) -> None:
    received = ReceivedMessage(1, content_header, b"{}")
    content_type, headers = received.essentials()
    check_delivery(Delivery(from_headers(headers, content_type, received.body)))
    received.properties()


def read_amqp_dead_letter(content_header: bytes) -> None:
    content_type, headers = ReceivedMessage(1, content_header, b"{}").essentials()
    letter = letter_of(AUDIT, headers, content_type, b"{}")
    check_readable(letter.envelope)


def read_sqlite_row(row: tuple[Any, ...]) -> None:
    check_delivery(sqlite_rows.delivery(1, *row[:4]))


def read_sqlite_dead_letter(row: tuple[Any, ...]) -> None:
    check_letter(sqlite_rows.dead_letter(AUDIT.name, *row))


def add_to_census(counted: Sequence[tuple[bytes, bytes, bytes]]) -> None:
    found = Census()
    for name, dataschema, made_at in counted:
        fields = [(b"type", name), (b"dataschema", dataschema), (b"time", made_at)]
        found.add(AUDIT.name, from_fields(fields), "ready")
    assert sum(lot.number for lot in found.lots.values()) == len(counted)


def read_lock_file(data: bytes) -> None:
    try:
        lock = read_lock(Path("v1.json"), "payments.paid", 1, 1, data)
    except BrokenLock as error:
        str(error).encode()  # it can be printed
    else:
        assert isinstance(lock, Lock)


times = (
    st.datetimes().map(lambda moment: moment.isoformat().encode())
    | mutated(b"2026-11-28T12:00:00+00:00")
    | st.sampled_from([b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59"])
)

DECODERS: Sequence[tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = (
    (
        read_redis_entry,
        entries(b"type", b"time", contents=envelopes)
        | changed_entries(fields_of(to_fields(VALID))),
    ),
    (
        read_redis_retry,
        entries(b"parcel", contents=parcels) | parcels.map(lambda raw: [b"parcel", raw]),
    ),
    (read_redis_dead_letter, st.tuples(entry_ids, letters)),
    (read_amqp_message, content_headers),
    (read_amqp_dead_letter, content_headers),
    (read_sqlite_row, st.tuples(columns, columns, columns, columns)),
    (read_sqlite_dead_letter, st.tuples(*[columns] * 7)),
    (
        add_to_census,
        st.lists(
            st.tuples(st.binary(max_size=9), envelopes, times | st.binary(max_size=9)), max_size=4
        ),
    ),
)


def fuzz(decoder: Callable[[Any], None], inputs: st.SearchStrategy[Any], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(inputs)
    def decode(value: Any) -> None:
        decoder(value)

    decode()


with_examples = pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(SOAK_EXAMPLES, marks=pytest.mark.soak)]
)


@with_examples
@pytest.mark.parametrize(
    ("decoder", "inputs"),
    [pytest.param(*pair, id=pair[0].__name__) for pair in DECODERS],
)
def test_a_decoder_accepts_any_input(
    decoder: Callable[[Any], None], inputs: st.SearchStrategy[Any], examples: int
) -> None:
    fuzz(decoder, inputs, examples)


@with_examples
def test_reading_a_lock_file_accepts_any_input(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "v1.json"
    write_lock(lock_of(Paid, tmp_path))
    written = lock_of(Paid, tmp_path).path.read_bytes()
    content = orjson.loads(written)
    other_parts = st.dictionaries(st.sampled_from(sorted(content)), values).map(
        lambda parts: json.dumps(content | parts).encode()
    )
    inputs = json_values | mutated(written) | other_parts | st.binary()

    def read_and_write_status(data: bytes) -> None:
        read_lock_file(data)
        path.write_bytes(data)
        try:
            write_status(path, "retired", None)
        except UsageError as error:
            str(error).encode()  # it can be printed
        else:
            assert isinstance(parse(path.read_text()), dict)

    fuzz(read_and_write_status, inputs, examples)


@pytest.mark.parametrize("fields", [[b"parcel", b"1 x\n[1,2]\n{}"], [b"parcel", b"1 x\nnull\n{}"]])
def test_a_parcel_whose_attributes_are_not_an_object_is_unreadable(fields: Fields) -> None:
    envelope, attempt = read_parcel(fields)
    delivery = Delivery.of(envelope, attempt, 1, None)
    assert delivery.unreadable == "its attributes are JSON, but not an object"
    assert delivery.envelope == Envelope({}, fields[1])
