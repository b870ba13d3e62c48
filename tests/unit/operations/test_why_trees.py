"""The tree that `eventmesh why` makes of what was found, without any server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from eventmesh import Command, Event, Service, Transaction
from eventmesh.cli.why import as_document, lines, mermaid
from eventmesh.operations.evidence import Evidence, InDatabase, OnBroker, SagaHistory
from eventmesh.operations.why import Trace, created_at, trace
from eventmesh.persistence.journal import Begun, Handled
from eventmesh.persistence.outbox.parked import Waiting
from eventmesh.persistence.sagas import SagaRow
from eventmesh.transports.base import DeadLetter
from eventmesh.transports.census import Hidden
from eventmesh.transports.finding import Located
from eventmesh.wire.envelope import Envelope

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
WEEK = 7 * 86_400.0


class Placed(Event, name="shop.placed", version=1): ...


class Capture(Command, name="billing.capture", version=1): ...


class Packed(Event, name="shop.packed", version=1): ...


class Shipped(Event, name="shop.shipped", version=1): ...


def services() -> list[Service]:
    shop = Service("shop")
    shop.publisher(Capture)

    @shop.subscriber(name="pack")
    async def pack(event: Placed, tx: Transaction) -> None: ...

    @shop.subscriber(name="look")
    async def look(event: Placed) -> None: ...

    return [shop]


def message_id(number: int, at: datetime = NOON) -> str:
    milliseconds = f"{int(at.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-{number:012x}"


def handled(number: int, cause: int | None = None, **changes: object) -> Handled:
    values = {
        "subscription": "shop.pack",
        "message_id": message_id(number),
        "at": NOON + timedelta(seconds=number),
        "name": "shop.placed",
        "key": None,
        "correlation_id": message_id(1),
        "causation_id": None if cause is None else message_id(cause),
        "attempt": 1,
        "took": None,
    }
    return Handled(**(values | changes))  # type: ignore[arg-type]


def found(
    *rows: Handled,
    broker: OnBroker | None = None,
    waiting: Sequence[Waiting] = (),
    begun: Sequence[Begun] = (),
    sagas: Sequence[SagaHistory] = (),
    problem: str | None = None,
) -> Trace:
    database = InDatabase(
        ("shop",), rows, tuple(begun), tuple(waiting), tuple(sagas), problem=problem
    )
    return trace("x", Evidence((database,), broker or OnBroker()), services(), NOON, WEEK)


def envelope(number: int, cause: int | None = None, **changes: str) -> Envelope:
    attributes = {"id": message_id(number), "type": "shop.placed", "source": "/shop", **changes}
    if cause is not None:
        attributes |= {"causationid": message_id(cause), "correlationid": message_id(1)}
    return Envelope(attributes, b"")


def test_each_message_is_followed_by_its_effects_oldest_first() -> None:
    tree = found(handled(1), handled(5, 2), handled(2, 1), handled(4, 1), handled(3, 2))
    order = [(int(each.id[-1]), each.depth) for each in tree.messages]
    assert order == [(1, 0), (2, 1), (3, 2), (5, 2), (4, 1)]


def test_a_cause_of_which_nothing_is_known_stands_above_its_effects() -> None:
    first, second, third = found(handled(3, 9), handled(2, 9)).messages
    assert (first.id, first.name, first.depth) == (message_id(9), None, 0)
    assert (second.id, third.id, third.depth) == (message_id(2), message_id(3), 1)
    assert "nothing else is known" in "\n".join(lines(found(handled(3, 9))))


def test_the_effects_of_a_foreign_message_are_found_by_the_id_that_its_publisher_gave_it() -> None:
    foreign = handled(1, message_id="sha256:" + "0" * 64, correlation_id="invoice 7")
    effect = handled(2, causation_id="invoice 7", correlation_id="invoice 7")
    assert [each.depth for each in found(foreign, effect).messages] == [0, 1]


def test_the_effects_of_a_signal_to_a_saga_are_below_it() -> None:
    signal = envelope(0, 1, id="dead-lettered:7:00000000", source="/shop", type="shop.buy.signal")
    told = handled(3, 1, message_id=signal.unique_id, name=signal.name, subscription="shop.saga")
    undone = handled(4, causation_id=signal.id, name="shop.undone")
    tree = found(handled(1), told, undone)
    assert [(each.id, each.depth) for each in tree.messages] == [
        (message_id(1), 0),
        (signal.unique_id, 1),
        (undone.message_id, 2),
    ]


def test_places_that_were_not_looked_into_for_one_reason_are_one_note() -> None:
    unknown = [Hidden(f"shop.s{number}", "in_flight", None, "no") for number in range(6)]
    counted = [Hidden("shop.pack", "ready", 3, "no"), Hidden("", "delayed", 2, "no")]
    tree = found(broker=OnBroker(hidden=(*unknown, *counted)))
    assert tree.hidden == (
        "an unknown number of in flight messages of shop.s0, shop.s1, shop.s2, shop.s3 and 2 more "
        "not looked into: no",
        "3 ready messages of shop.pack not looked into: no",
        "2 delayed messages not looked into: no",
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)), max_size=30))
def test_every_message_is_in_the_tree_once_even_if_causes_form_rings(
    pairs: list[tuple[int, int | None]],
) -> None:
    tree = found(*(handled(number, cause) for number, cause in pairs))
    ids = [each.id for each in tree.messages]
    causes = {each.causation_id for each in tree.messages} - {None}
    assert len(ids) == len(set(ids))
    assert {message_id(number) for number, _ in pairs} | causes == set(ids)


def test_what_would_have_left_no_trace_is_a_note() -> None:
    shop = Service("shop")

    @shop.subscriber(name="pack")
    async def pack(event: Placed, tx: Transaction) -> Packed | Shipped: ...

    @shop.subscriber(name="tell")
    async def tell(event: Packed) -> None: ...

    @shop.subscriber(name="bill")
    async def bill(event: Shipped, tx: Transaction) -> None: ...

    def notes(*rows: Handled) -> tuple[str, ...]:
        evidence = Evidence((InDatabase(("shop",), rows, (), (), ()),), OnBroker())
        return trace("x", evidence, [shop], NOON, WEEK).hidden

    [note] = notes(handled(1))
    assert note.startswith("perhaps shop.packed was published, too: only shop.tell takes it")
    assert notes(handled(1), handled(2, 1, name="shop.packed", subscription="shop.tell")) == ()
    assert notes(handled(1, subscription="shop.bill", name="shop.shipped")) == (note,)
    shop.handlers["shop.pack"] = replace(shop.handlers["shop.pack"], function=None)
    assert notes(handled(1)) == (), "it is a saga's, whose log tells what it published"


def test_what_is_known_of_each_place_is_said_in_a_sentence() -> None:
    letter = DeadLetter("7-0", "shop.pack", envelope(2, 1), "no stock", "", 8, NOON)
    row = Waiting(1, envelope(3, 1), "parked", NOON, 10, "too large", 5)
    broker = OnBroker(
        (
            Located("shop.pack", "ready", envelope(4, 1)),
            Located("shop.pack", "delayed", envelope(5, 1)),
            Located("shop.pack", "in_flight", envelope(6, 1)),
            Located("", "unrouted", envelope(7, 1)),
        ),
        (letter,),
    )
    begun = Begun("shop.pack", message_id(8), 3, NOON)
    tree = found(
        handled(1, attempt=2, took=1.25),
        handled(8, 1, name=None, subscription="old.one"),
        broker=broker,
        waiting=[row],
        begun=[begun],
    )
    text = "\n".join(lines(tree))
    for sentence in (
        "handled by shop.pack at 2026-11-29 12:00:01.000 (1.0 s after it was created), "
        "attempt 2, took 1.2 s",
        "dead letter of shop.pack at 2026-11-29 12:00:00.000 after 8 attempt(s): no stock "
        "(eventmesh dlq show shop 7-0)",
        "parked in the outbox of shop after 10 attempt(s): too large",
        "waits for shop.pack\n",
        "waits for shop.pack, to be retried later",
        "delivered to a worker of shop.pack, not settled yet",
        "unrouted: no subscription takes it yet",
        "being handled by shop.pack: its handler was started 3 times and has not ended",
        "written without a journal",
    ):
        assert sentence in text
    assert json.loads(json.dumps(as_document(tree)))["messages"][0]["sightings"][0]["took"] == 1.25


def reason(tree: Trace, place: str) -> str:
    [detail] = [
        sighting.detail
        for each in tree.messages
        for sighting in each.sightings
        if sighting.what == "unknown" and sighting.place == place
    ]
    return detail


def test_a_subscription_that_knows_nothing_of_a_message_is_named_with_the_reason() -> None:
    elsewhere = handled(1, subscription="other.note")
    hidden = OnBroker(hidden=(Hidden("shop.pack", "ready", 3, "no"),))
    old = NOON - timedelta(days=8)
    forgotten = handled(1, subscription="other.note", message_id=message_id(1, old))
    assert "takes no transaction" in reason(found(elsewhere), "shop.look")
    assert "no trace" in reason(found(elsewhere), "shop.pack")
    assert "may be among" in reason(found(elsewhere, broker=hidden), "shop.pack")
    broken = found(elsewhere, broker=OnBroker(problem="away"))
    assert "broker did not answer" in reason(broken, "shop.pack")
    assert "older than the inbox remembers" in reason(found(forgotten), "shop.pack")
    silent = OnBroker((Located("other.note", "ready", envelope(1)),))
    assert "database of shop" in reason(found(broker=silent, problem="away"), "shop.pack")
    assert silent.problem is None
    assert found(problem="away").problems == ("away",)


def test_a_message_that_is_still_in_the_outbox_is_missed_nowhere() -> None:
    tree = found(waiting=[Waiting(1, envelope(1), "ready", None, 0, "", 5)])
    [message] = tree.messages
    assert [each.what for each in message.sightings] == ["outbox"]


def test_the_log_of_a_saga_is_shown_and_its_state_is_not() -> None:
    row = SagaRow(message_id(1), "shop.buy", 1, "parked", {"card": "4242"}, {}, "no answer", 3)
    saga = SagaHistory(row, ((NOON, {"rule": "started", "status": "running", "sent": ["a.b"]}),))
    tree = found(sagas=[saga])
    text = "\n".join(lines(tree))
    assert "saga shop.buy v1" in text
    assert "2026-11-29 12:00:00.000  started -> sent a.b" in text
    assert "4242" not in text + json.dumps(as_document(tree))


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_text_of_a_message_adds_a_line_or_a_sign_of_its_own(
    name: str, key: str, text: str
) -> None:
    hostile = {"type": name, "partitionkey": key}
    letter = DeadLetter(text, f"a.{text}", envelope(2, 1, **hostile), text, text, 1, NOON)
    tree = found(
        handled(1, name=name, key=key, causation_id=text),
        broker=OnBroker((Located(f"b.{text}", "ready", envelope(2, 1, **hostile)),), (letter,)),
        waiting=[Waiting(1, envelope(3, 1, **hostile), "parked", None, 1, text, 5)],
    )
    shown, drawn = list(lines(tree)), list(mermaid(tree))
    assert all(line.isprintable() for line in (*shown, *drawn))
    json.dumps(as_document(tree))
    for line in drawn[1:]:
        assert not set("<>{}[]\"'`") & set(line.replace("->>", "").replace("participant", ""))


def test_the_diagram_has_an_arrow_for_each_delivery() -> None:
    letter = DeadLetter(
        "7", "billing.charge", envelope(2, 1, type="shop.charge"), "no", "", 1, NOON
    )
    tree = found(
        handled(1, subscription="audit.note", attempt=2),
        broker=OnBroker((Located("shop.pack", "ready", envelope(1)),), (letter,)),
    )
    drawn = "\n".join(mermaid(tree))
    assert "participant s0 as shop" in drawn
    assert "s0->>s1: shop.placed (attempt 2)" in drawn
    assert "s0-)s0: shop.placed (ready)" in drawn
    assert "-xs2: shop.charge (dead)" in drawn


def test_the_diagram_shows_a_command_from_the_service_that_publishes_it() -> None:
    """Also where its receiver has handled the same event before."""
    drawn = list(
        mermaid(
            found(
                handled(1, subscription="billing.note"),
                handled(1, subscription="shop.pack"),
                handled(2, 1, name="billing.capture", subscription="billing.capture"),
            )
        )
    )
    assert drawn[1:3] == ["    participant s0 as shop", "    participant s1 as billing"]
    assert "    s0->>s1: billing.capture" in drawn


def test_the_time_in_an_id_is_that_of_its_creation() -> None:
    assert created_at(message_id(1)) == NOON
    for other in ("", "7", "x" * 36, "0190000x-0000-7000-8000-000000000000", "sha256:" + "0" * 64):
        assert created_at(other) is None
