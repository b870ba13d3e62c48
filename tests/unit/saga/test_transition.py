# ruff: noqa: N805  # the functions of a saga take its state, there is no self
"""Every way a saga can go, walked through: each reply that may come, and each that may come late,
twice or to the wrong step."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from eventmesh.contracts.message import Command, Event
from eventmesh.saga.authoring import Saga, pivot, step
from eventmesh.saga.definition import UNDO_SUFFIX, Definition, Flow, Step
from eventmesh.saga.transition import SagaRecord, StepRecord, Transition, advance, start
from services.orders import contracts as shop
from services.orders.saga import FulfilOrder

# Sagas of several forms


class Trip(BaseModel):
    trip_id: UUID


class Booked(Event, name="trips.booked", version=1):
    trip_id: UUID


class Ended(Event, name="trips.ended", version=1):
    how: str


class Do(Command, name="parts.do", version=1):
    what: str


class Did(Event, name="parts.did", version=1):
    part_id: UUID
    price: Decimal = Decimal("1.10")


class Signed(Event, name="parts.signed", version=1, strict=True):
    part_id: UUID = Field(alias="partId")
    on: date


class Failed(Event, name="parts.failed", version=1):
    why: str = "full"


class Broke(Event, name="parts.broke", version=1):
    pass


class Undid(Event, name="parts.undid", version=1):
    pass


class Trips(Saga[Trip], name="trips.base", started_by=Booked):
    """One step, and the functions that all sagas here share."""

    def begin(event: Booked) -> Trip:
        return Trip(trip_id=event.trip_id)

    @step(ok=Did)
    def only(state: Trip) -> Do:
        return Do(what="only")

    flow = Flow(((only,),))

    def completed(state: Trip) -> Ended:
        return Ended(how="completed")

    def undone(state: Trip, failure: Event) -> Ended:
        return Ended(how=failure.__identity__.name)


def make_step(*failed: type[Event], undo: str = "none", is_pivot: bool = False) -> Step:
    """A step whose undo is "none", "silent" or "answered"."""

    def command(state: Trip) -> Do:
        return Do(what="do")

    def take_back(state: Trip, reply: Did) -> Do:
        return Do(what=f"undo {reply.part_id} at {reply.price}")

    made = (pivot if is_pivot else step)(ok=Did, failed=failed)(command)
    if undo == "silent":
        made.undo(take_back)
    elif undo == "answered":
        made.undo(ok=Undid)(take_back)
    return made


def make_saga(*stages: tuple[Step, ...]) -> Definition:
    """A saga of these stages; its steps are a, b, c and so on."""
    steps = [each for stage in stages for each in stage]
    for name, each in zip("abcdef", steps, strict=False):
        each.name = name
    return replace(Trips.definition, stages=stages)


SAGAS = {
    "shop": FulfilOrder.definition,
    "one step": Trips.definition,
    "answered undos": make_saga(
        (make_step(Failed, undo="answered"),),
        (make_step(Failed, Broke, undo="answered"),),
        (make_step(Failed, undo="answered"),),
    ),
    "silent undos": make_saga(
        (make_step(Failed, undo="silent"),),
        (make_step(Failed, undo="silent"),),
        (make_step(Failed),),
    ),
    "mixed undos": make_saga(
        (make_step(undo="silent"),),
        (make_step(Failed, undo="answered"),),
        (make_step(Failed),),
        (make_step(Failed, undo="silent"),),
        (make_step(Broke, undo="answered"),),
    ),
    "pivot in the middle": make_saga(
        (make_step(Failed, undo="answered"),),
        (make_step(Failed, is_pivot=True),),
        (make_step(),),
        (make_step(),),
    ),
    "side by side": make_saga(
        (make_step(Failed, undo="answered"), make_step(Failed, undo="silent")),
        (make_step(Failed, undo="answered"), make_step(Broke, undo="answered")),
        (make_step(Failed),),
    ),
}

every_saga = pytest.mark.parametrize("definition", SAGAS.values(), ids=SAGAS)


# Walking


def beginning(definition: Definition) -> Event:
    if definition.started_by is Booked:
        return Booked(trip_id=UUID(int=1))
    return shop.OrderPlaced(
        order_id=UUID(int=1), card="c", sku="s", quantity=2, amount=Decimal("9.90")
    )


def example(event: type[Event]) -> Event:
    """An event of this type."""
    values = {
        "order_id": UUID(int=1),
        "payment_id": UUID(int=2),
        "part_id": UUID(int=3),
        "reason": "because",
        "tracking_number": "T1",
    }
    return event(**{name: values[name] for name in event.model_fields if name in values})


def find(definition: Definition, label: str) -> Step:
    name = label.removesuffix(UNDO_SUFFIX)
    return next(each for each in definition.steps if each.name == name)


def answers(definition: Definition, label: str) -> list[Event]:
    """Every reply that may come to a sending; none to an undo that nobody answers."""
    its = find(definition, label)
    if label.endswith(UNDO_SUFFIX):
        assert its.undoing is not None
        return [] if its.undoing.ok is None else [example(its.undoing.ok)]
    return [example(event) for event in (its.ok, *its.failed)]


def stored_and_loaded(definition: Definition, record: SagaRecord) -> SagaRecord:
    """The record as the coordinator finds it again: through the columns of its row, as JSON."""
    row = json.loads(
        json.dumps(
            {
                "state": record.state.model_dump(mode="json", by_alias=False),
                "steps": {name: asdict(each) for name, each in record.steps.items()},
            }
        )
    )
    return SagaRecord(
        status=record.status,
        state=definition.state.model_validate_json(
            json.dumps(row["state"]), by_name=True, by_alias=False
        ),
        steps={name: StepRecord(**each) for name, each in row["steps"].items()},
        reason=record.reason,
    )


@dataclass(frozen=True)
class Path:
    """One way a saga has gone so far."""

    transition: Transition
    sent: tuple[str, ...]
    answered: tuple[tuple[str, Event], ...] = ()
    endings: tuple[Any, ...] = ()

    @property
    def record(self) -> SagaRecord:
        return self.transition.record

    def waiting(self, definition: Definition) -> list[str]:
        """What was sent and may still be answered."""
        done = {label for label, _ in self.answered}
        return [label for label in self.sent if label not in done and answers(definition, label)]

    def followed_by(self, label: str, reply: Event, transition: Transition) -> Path:
        ending = () if transition.ending is None else (transition.ending,)
        return Path(
            transition,
            (*self.sent, *(sending.label for sending in transition.sendings)),
            (*self.answered, (label, reply)),
            (*self.endings, *ending),
        )

    def names(self, event_is: str) -> list[str]:
        """The steps that were answered so: "ok" or "failed"."""
        return [
            label
            for label, reply in self.answered
            if not label.endswith(UNDO_SUFFIX) and (type(reply) in OKS) is (event_is == "ok")
        ]


OKS = {Did, shop.StockReserved, shop.PaymentCaptured, shop.OrderShipped}


def first(definition: Definition) -> Path:
    begun = start(definition, beginning(definition))
    return Path(begun, tuple(sending.label for sending in begun.sendings))


def walk(definition: Definition) -> Iterator[Path]:
    """Every path there is, and every beginning of one."""
    paths = [first(definition)]
    while paths:
        path = paths.pop()
        yield path
        for label in path.waiting(definition):
            for reply in answers(definition, label):
                transition = advance(definition, path.record, label, reply)
                assert transition is not None, (path.answered, label, reply)
                paths.append(path.followed_by(label, reply, transition))


def ends(definition: Definition) -> list[Path]:
    return [path for path in walk(definition) if not path.waiting(definition)]


def undos_in_order(definition: Definition, path: Path) -> list[str]:
    """What must be undone after this path, last step first."""
    done = path.names("ok")
    return [
        each.name + UNDO_SUFFIX
        for each in reversed(list(definition.steps))
        if each.name in done and each.undoing is not None
    ]


# What must be true of every way


@every_saga
def test_every_way_ends_completed_or_undone(definition: Definition) -> None:
    for path in walk(definition):
        assert path.record.ended == (not path.waiting(definition)), path.answered
    assert {path.record.status for path in ends(definition)} <= {"completed", "undone"}


@every_saga
def test_a_saga_is_completed_exactly_when_nothing_failed(definition: Definition) -> None:
    for path in ends(definition):
        failed = path.names("failed")
        assert path.record.status == ("undone" if failed else "completed")
        if not failed:
            assert sorted(path.names("ok")) == sorted(each.name for each in definition.steps)
            assert path.record.reason is None


@every_saga
def test_undo_commands_come_in_exactly_the_reverse_order_of_the_steps_done(
    definition: Definition,
) -> None:
    for path in ends(definition):
        undos = [label for label in path.sent if label.endswith(UNDO_SUFFIX)]
        expected = [] if path.record.status == "completed" else undos_in_order(definition, path)
        assert undos == expected, path.answered


@every_saga
def test_an_undo_with_an_answer_is_awaited_before_the_next_one(definition: Definition) -> None:
    for path in walk(definition):
        waiting = [x for x in path.waiting(definition) if x.endswith(UNDO_SUFFIX)]
        assert len(waiting) <= 1


@every_saga
def test_a_step_is_sent_once_and_only_when_all_before_it_are_done(definition: Definition) -> None:
    for path in walk(definition):
        assert len(path.sent) == len(set(path.sent))
        done = set(path.names("ok"))
        for number, stage in enumerate(definition.stages):
            if any(each.name in path.sent for each in stage):
                before = definition.stages[:number]
                assert {each.name for stage in before for each in stage} <= done


@every_saga
def test_after_a_failure_no_further_step_is_sent(definition: Definition) -> None:
    for path in walk(definition):
        if path.names("failed"):
            new = [sending.label for sending in path.transition.sendings]
            assert all(label.endswith(UNDO_SUFFIX) for label in new)


@every_saga
def test_a_saga_says_how_it_ended_once_and_only_at_the_end(definition: Definition) -> None:
    for path in walk(definition):
        assert len(path.endings) == (1 if path.record.ended else 0)


@every_saga
def test_nothing_happens_after_the_end(definition: Definition) -> None:
    labels = [each.name + suffix for each in definition.steps for suffix in ("", UNDO_SUFFIX)]
    events = [example(event) for event in set(definition.replies())]
    for path in ends(definition):
        for label in labels:
            for event in events:
                assert advance(definition, path.record, label, event) is None


@every_saga
def test_a_reply_that_comes_again_changes_nothing(definition: Definition) -> None:
    for path in walk(definition):
        for label, reply in path.answered:
            assert advance(definition, path.record, label, reply) is None, (path.answered, label)


@every_saga
def test_a_late_reply_of_another_kind_changes_nothing(definition: Definition) -> None:
    for path in walk(definition):
        for label, _ in path.answered:
            for reply in answers(definition, label):
                assert advance(definition, path.record, label, reply) is None


@every_saga
def test_a_reply_to_what_was_not_sent_changes_nothing(definition: Definition) -> None:
    labels = [each.name + suffix for each in definition.steps for suffix in ("", UNDO_SUFFIX)]
    events = [example(event) for event in set(definition.replies())]
    for path in walk(definition):
        for label in {"", "nobody", UNDO_SUFFIX, *labels} - set(path.sent):
            for event in events:
                assert advance(definition, path.record, label, event) is None, (
                    path.answered,
                    label,
                )


@every_saga
def test_a_reply_that_does_not_belong_to_the_step_changes_nothing(definition: Definition) -> None:
    events = {event: example(event) for event in definition.replies()} | {Ended: Ended(how="")}
    for path in walk(definition):
        for label in path.waiting(definition):
            fitting = {type(reply) for reply in answers(definition, label)}
            for wrong in events.keys() - fitting:
                assert advance(definition, path.record, label, events[wrong]) is None


@every_saga
def test_the_transition_is_pure(definition: Definition) -> None:
    event = beginning(definition)
    assert start(definition, event) == start(definition, event)
    for path in walk(definition):
        before = copy.deepcopy(path.record)
        for label in path.waiting(definition):
            for reply in answers(definition, label):
                one = advance(definition, path.record, label, reply)
                assert one == advance(definition, path.record, label, reply)
                assert path.record == before


@every_saga
def test_a_record_survives_the_database(definition: Definition) -> None:
    for path in walk(definition):
        loaded = stored_and_loaded(definition, path.record)
        assert loaded == path.record
        for label in path.waiting(definition):
            for reply in answers(definition, label):
                assert advance(definition, loaded, label, reply) == advance(
                    definition, path.record, label, reply
                )


@given(st.data())
def test_any_stream_of_replies_leads_to_an_end_and_never_beyond(data: st.DataObject) -> None:
    definition = data.draw(st.sampled_from(list(SAGAS.values())))
    labels = [each.name + suffix for each in definition.steps for suffix in ("", UNDO_SUFFIX)]
    events = [example(event) for event in dict.fromkeys(definition.replies())]
    record, endings = start(definition, beginning(definition)).record, 0
    noise = st.tuples(st.sampled_from(labels), st.sampled_from(events))
    for label, event in data.draw(st.lists(noise, max_size=60)):
        was_over = record.ended
        transition = advance(definition, record, label, event)
        assert not (was_over and transition)
        if transition is not None:
            assert transition.record != record
            record = transition.record
            endings += transition.ending is not None
    assert endings == record.ended


# The shop, told as a story


def told(*replies: tuple[str, Event]) -> Transition:
    """The last transition of the shop's saga after these replies."""
    transition = start(FulfilOrder.definition, beginning(FulfilOrder.definition))
    for label, reply in replies:
        found = advance(FulfilOrder.definition, transition.record, label, reply)
        assert found is not None
        transition = found
    return transition


RESERVED = ("reserve", example(shop.StockReserved))
CAPTURED = ("capture", example(shop.PaymentCaptured))


def test_an_order_is_reserved_paid_shipped_and_closed() -> None:
    assert [type(s.command) for s in told().sendings] == [shop.ReserveStock]
    assert [type(s.command) for s in told(RESERVED).sendings] == [shop.CapturePayment]
    assert [type(s.command) for s in told(RESERVED, CAPTURED).sendings] == [shop.ShipOrder]
    end = told(RESERVED, CAPTURED, ("ship", example(shop.OrderShipped)))
    assert end.ending == shop.OrderClosed(order_id=UUID(int=1))
    assert end.sendings == ()


def test_an_order_that_cannot_be_shipped_gives_back_money_then_stock() -> None:
    refused = ("ship", example(shop.ShipmentRefused))
    [refund] = told(RESERVED, CAPTURED, refused).sendings
    assert refund.command == shop.RefundPayment(order_id=UUID(int=1), payment_id=UUID(int=2))
    refunded = ("capture:undo", example(shop.PaymentRefunded))
    [release] = told(RESERVED, CAPTURED, refused, refunded).sendings
    assert release.command == shop.ReleaseStock(order_id=UUID(int=1))
    end = told(RESERVED, CAPTURED, refused, refunded, ("reserve:undo", example(shop.StockReleased)))
    assert end.ending == shop.OrderCancelled(order_id=UUID(int=1), reason="because")
    assert end.record.reason == "ship: shipping.shipment_refused"


def test_an_order_of_what_is_not_there_is_cancelled_at_once() -> None:
    end = told(("reserve", example(shop.OutOfStock)))
    assert end.ending == shop.OrderCancelled(order_id=UUID(int=1), reason="out of stock")
    assert end.sendings == ()


# Particular ways


def test_silent_undos_are_all_sent_at_once_and_the_saga_is_over() -> None:
    definition = SAGAS["silent undos"]
    record = start(definition, beginning(definition)).record
    for label in "ab":
        record = advance(definition, record, label, example(Did)).record
    end = advance(definition, record, "c", Failed())
    assert [sending.label for sending in end.sendings] == ["b:undo", "a:undo"]
    assert end.record.status == "undone"
    assert end.ending == Ended(how="parts.failed")


def test_an_undo_gets_the_reply_that_its_own_step_got() -> None:
    definition = SAGAS["silent undos"]
    record = start(definition, beginning(definition)).record
    replies = [Did(part_id=uuid4(), price=Decimal("0.10")), Did(part_id=uuid4())]
    for label, reply in zip("ab", replies, strict=True):
        record = stored_and_loaded(definition, advance(definition, record, label, reply).record)
    end = advance(definition, record, "c", Failed())
    assert [sending.command.what for sending in end.sendings] == [
        f"undo {replies[1].part_id} at 1.10",
        f"undo {replies[0].part_id} at 0.10",
    ]


def test_an_undo_gets_a_strict_reply_with_aliases_as_it_was() -> None:
    signing = step(ok=Signed)(lambda state: Do(what="sign"))
    signing.undo(lambda state, reply: Do(what=f"tear up {reply.part_id} of {reply.on}"))
    definition = make_saga((signing,), (make_step(Failed),))
    record = start(definition, beginning(definition)).record
    signed = Signed(partId=UUID(int=3), on=date(2026, 1, 2))
    record = stored_and_loaded(definition, advance(definition, record, "a", signed).record)
    [undo] = advance(definition, record, "b", Failed()).sendings
    assert undo.command.what == f"tear up {UUID(int=3)} of 2026-01-02"


def test_a_step_beside_a_failed_one_is_awaited_and_then_undone() -> None:
    definition = SAGAS["side by side"]
    record = start(definition, beginning(definition)).record
    failed = advance(definition, record, "a", Failed())
    assert (failed.record.status, failed.sendings) == ("undoing", ())
    end = advance(definition, failed.record, "b", example(Did))
    assert [sending.label for sending in end.sendings] == ["b:undo"]
    assert end.record.status == "undone"


def test_the_reason_is_the_first_failure_in_time() -> None:
    definition = SAGAS["side by side"]
    record = start(definition, beginning(definition)).record
    record = advance(definition, record, "b", Failed()).record
    assert advance(definition, record, "a", Failed()).record.reason == "b: parts.failed"


def test_steps_are_known_by_name_so_a_new_order_of_the_code_breaks_no_saga_under_way() -> None:
    definition = SAGAS["answered undos"]
    record = start(definition, beginning(definition)).record
    record = advance(definition, record, "a", example(Did)).record
    a, b, c = definition.stages
    reordered = replace(definition, stages=(a, c, b))
    transition = advance(reordered, record, "b", example(Did))
    assert [sending.label for sending in transition.sendings] == ["c"]
    end = advance(reordered, transition.record, "c", example(Did))
    assert end.record.status == "completed"
