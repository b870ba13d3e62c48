"""The coordinator on a real database: which saga a message is for, and what is stored and sent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from eventmesh import Command, Saga, Service
from eventmesh.contracts.message import Message
from eventmesh.errors import Conflict, Reject, UnknownSaga, UsageError
from eventmesh.persistence import sagas, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.sagas import SagaRow
from eventmesh.persistence.transaction import Sender
from eventmesh.runtime.declaring.retry import Retry, decide
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.flow import Step
from eventmesh.saga.happening import Operation, OperatorAction, UnexpectedAnswer
from eventmesh.saga.record import parse_label
from eventmesh.saga.signals import SagaSignal, delayed_id, signal_of, timer_id
from eventmesh.saga.storage import NewerVersion
from eventmesh.saga.unmatched import Unmatched
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.outcome import Dead, RetryAfter
from eventmesh.wire.envelope import DEFAULT_MAX_BYTES, Envelope, seal
from tests.unit.saga.trips import (
    TWICE,
    Approved,
    Booked,
    Did,
    Do,
    Elsewhere,
    Ended,
    Failed,
    Trip,
    Undid,
    add_step,
    new_saga,
)

ONE = "01900000-0000-7000-8000-0000000000aa"
OTHER = "01900000-0000-7000-8000-0000000000bb"
THIRD = "01900000-0000-7000-8000-0000000000cc"

Signal: type[SagaSignal] = signal_of("trips.base")


def begin(event: Booked) -> Trip:
    return Trip()


def two_steps(**options: Any) -> Saga[Trip]:
    saga = new_saga(**options)
    saga.flow(add_step(saga, "a") >> add_step(saga, "b", undo="silent"))
    return saga


def with_wait() -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    wait = saga.wait("approval", ok=Approved, timeout="2d", correlate=lambda event: event.trip)
    saga.flow(add_step(saga, "a") >> wait)
    return saga


def by_key(**options: Any) -> Saga[Trip]:
    """A step with a command, whose answers are found by key."""
    saga = new_saga(key=lambda state: state.trip, **options)
    saga.flow(add_step(saga, "a", undo="state", correlate=lambda event: 1))
    return saga


def sent_again() -> Saga[Trip]:
    """A step whose command is sent again after five seconds."""
    saga = new_saga()
    saga.flow(add_step(saga, "a", retry=TWICE))
    return saga


@dataclass
class Incoming:
    message: Message
    attributes: dict[str, str]


def start(saga_id: str = ONE, **attributes: str) -> Incoming:
    return Incoming(Booked(), {"id": saga_id, **attributes})


def answer(label: str, message: Message, saga_id: str = ONE) -> Incoming:
    return Incoming(message, {"sagaid": f"trips.base/{saga_id}", "sagastep": label})


def timed_out(label: str, saga_id: str = ONE) -> Incoming:
    return Incoming(Signal(saga_id=saga_id, label=label, what="timed_out"), {})


def dead_lettered(label: str, saga_id: str = ONE) -> Incoming:
    return Incoming(
        Signal(saga_id=saga_id, label=label, what="dead_lettered", reason="no such trip"), {}
    )


class Trips:
    """The service trips with its saga and its database, without a worker."""

    def __init__(self, database: Database, saga: Saga[Trip]) -> None:
        self.database = database
        self.clock = ManualClock()
        self.deploy(saga)

    def deploy(self, saga: Saga[Trip]) -> None:
        """From now on this version of the code is running."""
        self.service = Service("trips")
        self.coordinator = Coordinator(saga.definition)
        self.coordinator.extend(self.service)

    @property
    def retry(self) -> Retry:
        return self.service.handlers["trips.base.saga"].retry

    async def handle(self, *incoming: Incoming) -> list[Envelope]:
        """Handle these messages as one group; returns what was put into the outbox."""
        before = {row.id for row in await self.outbox()}
        messages = [each.message for each in incoming]
        envelopes = [self._sealed(each) for each in incoming]
        causes = list(zip(messages, envelopes, strict=True))
        async with self.database.unit_of_work(self._sender) as unit:
            with unit.transaction(causes) as transaction:
                await self.coordinator.handle_batch(messages, envelopes, transaction)
            await unit.commit()
        return [
            Envelope(row.headers, row.data) for row in await self.outbox() if row.id not in before
        ]

    async def operate(self, action: OperatorAction) -> None:
        async with self.database.unit_of_work(self._sender) as unit:
            with unit.transaction() as transaction:
                await self.coordinator.operate(ONE, action, "Ada", transaction)
            await unit.commit()

    async def outbox(self) -> Sequence[Any]:
        async with self.database.connection() as connection:
            return (await connection.execute(select(tables.outbox))).all()

    async def timers(self) -> set[str]:
        """The labels of the time-outs that wait in the outbox."""
        return {json.loads(row.data)["label"] for row in await self.outbox() if row.due_at}

    async def waiting(self) -> set[str]:
        """The labels of the commands that wait for their delay in the outbox."""
        rows = [row for row in await self.outbox() if row.due_at and row.name == "parts.do"]
        return {row.headers["sagastep"] for row in rows}

    async def row(self, saga_id: str = ONE) -> SagaRow:
        async with self.database.connection() as connection:
            found = await sagas.load(connection, "trips.base", saga_id)
        assert found is not None
        return found

    async def log(self, saga_id: str = ONE) -> list[Any]:
        async with self.database.connection() as connection:
            return [entry for _, entry in await sagas.log_of(connection, "trips.base", saga_id)]

    async def spoil(self, **values: Any) -> None:
        """Change the row behind the coordinator's back."""
        async with self.database.connection() as connection:
            await connection.execute(update(tables.saga).values(**values))
            await connection.commit()

    @property
    def _sender(self) -> Sender:
        return Sender("trips", self.service.registry, self.clock, DEFAULT_MAX_BYTES)

    def _sealed(self, each: Incoming) -> Envelope:
        sealed = seal(each.message, source="test", clock=self.clock)
        return Envelope({**sealed.attributes, **each.attributes}, sealed.data)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/trips.db", service="trips")
    async with database.connection() as connection:
        await connection.run_sync(tables.metadata.create_all)
        await connection.commit()
    yield database
    await database.close()


@pytest.fixture
def trips(database: Database) -> Trips:
    return Trips(database, two_steps())


def commands(sent: Sequence[Envelope]) -> list[tuple[str, str]]:
    """The commands among them, with their labels."""
    return [
        (envelope.attributes["sagaid"], envelope.attributes["sagastep"])
        for envelope in sent
        if envelope.name in ("parts.do", "parts.undo")
    ]


# Which saga a message is for


async def test_the_id_of_a_saga_is_that_of_the_message_that_started_it(trips: Trips) -> None:
    assert commands(await trips.handle(start(ONE))) == [(f"trips.base/{ONE}", "a")]
    assert (await trips.row(ONE)).waiting_for == "a"


async def test_a_group_has_several_sagas_and_several_answers_of_one(trips: Trips) -> None:
    await trips.handle(start(ONE), start(OTHER))
    sent = await trips.handle(
        answer("a", Did(), ONE), answer("a", Failed(), OTHER), answer("b", Did(), ONE)
    )
    assert commands(sent) == [(f"trips.base/{ONE}", "b")]
    assert [(await trips.row(each)).status for each in (ONE, OTHER)] == ["completed", "undone"]
    assert (await trips.row(ONE)).row_version == 2  # stored once for the group
    assert [entry["rule"] for entry in await trips.log()] == ["started", "applied", "applied"]


async def test_a_saga_may_be_started_and_answered_in_one_group(trips: Trips) -> None:
    await trips.handle(start(), answer("a", Did()))
    row = await trips.row()
    assert (row.waiting_for, row.row_version) == ("b", 1)


async def test_an_answer_that_comes_again_changes_nothing(trips: Trips) -> None:
    await trips.handle(start())
    await trips.handle(answer("a", Did()))
    before = await trips.row()
    assert await trips.handle(answer("a", Did())) == []
    assert await trips.row() == before


@pytest.mark.parametrize(
    ("other_failures", "at_least", "at_most"), [(0, 540, 800), (8, 480, 740), (12, 300, 480)]
)
async def test_an_answer_whose_saga_is_not_there_is_tried_again_for_minutes(
    trips: Trips, other_failures: int, at_least: float, at_most: float
) -> None:
    """Also one that was retried before, for a Conflict."""
    with pytest.raises(UnknownSaga, match=f"no saga {ONE} of trips.base exists") as raised:
        await trips.handle(answer("a", Did()))
    delays, attempt = [], 1 + other_failures
    while isinstance(outcome := decide(trips.retry, attempt, raised.value, 0.0), RetryAfter):
        delays.append(outcome.delay)
        attempt += 1
    assert isinstance(outcome, Dead)
    assert "no saga" in outcome.reason
    assert attempt == 20
    assert at_least <= sum(delays) * 0.75 <= sum(delays) <= at_most


@pytest.mark.parametrize(
    "saga_id", ["", "1", "no\0where", "x" * 300, f"{ONE}/", "sha256:", f"{ONE}\n"]
)
async def test_a_saga_id_that_cannot_be_one_is_rejected_at_once(trips: Trips, saga_id: str) -> None:
    with pytest.raises(Reject, match="the attribute sagaid"):
        await trips.handle(answer("a", Did(), saga_id))


async def test_an_answer_to_a_command_that_was_never_sent_is_a_dead_letter(trips: Trips) -> None:
    await trips.handle(start())
    with pytest.raises(UnexpectedAnswer) as raised:
        await trips.handle(answer("b", Did()))
    assert isinstance(decide(trips.retry, 1, raised.value, 0.0), Dead)


# Events without labels


async def test_an_event_finds_its_saga_by_its_key(database: Database) -> None:
    trips = Trips(database, with_wait())
    await trips.handle(start())
    assert (await trips.row()).key == "1"
    await trips.handle(answer("a", Did()), Incoming(Approved(trip=1), {}))
    assert (await trips.row()).status == "completed"


@pytest.mark.parametrize("is_early", [False, True])
async def test_the_log_names_the_step_that_an_event_found_by_its_key_was_taken_for(
    database: Database, is_early: bool
) -> None:
    trips = Trips(database, with_wait())
    await trips.handle(start())
    approved, did = Incoming(Approved(trip=1), {}), answer("a", Did())
    for each in (approved, did) if is_early else (did, approved):
        await trips.handle(each)
    [entry] = [each for each in await trips.log() if each.get("message") == "people.approved"]
    assert (entry["rule"], entry["step"]) == ("early" if is_early else "applied", "approval")


async def test_the_log_does_not_name_the_step_of_another_saga(database: Database) -> None:
    """An event found by its key may carry the labels of the saga that asked for it; and what starts
    a saga those of its parent."""
    trips = Trips(database, with_wait())
    others = {"sagaid": "orders.fulfil/7", "sagastep": "charge"}
    await trips.handle(start(**others))
    await trips.handle(answer("a", Did()))
    with capture_logs() as lines:
        await trips.handle(Incoming(Approved(trip=1), others))
    entries = [(each["rule"], each.get("step")) for each in await trips.log()]
    assert entries == [("started", None), ("applied", "a"), ("applied", "approval")]
    assert [each["step"] for each in lines if each["event"] == "saga advanced"] == ["approval"]


@pytest.mark.parametrize("saga_id", ["", "trips.other/started-1"])
async def test_an_event_that_answers_somebody_else_is_left_alone(
    trips: Trips, saga_id: str
) -> None:
    assert await trips.handle(Incoming(Did(), {"sagaid": saga_id, "sagastep": "a"})) == []


async def test_an_event_that_matches_no_saga_is_counted_and_logged_once(database: Database) -> None:
    trips = Trips(database, with_wait())
    with capture_logs() as logs:
        for _ in range(3):
            await trips.handle(Incoming(Approved(trip=7), {}))
        await trips.handle(Incoming(Did(), {}))
    assert [(each["name"], each["key"]) for each in logs] == [
        ("people.approved", "7"),
        ("parts.did", None),
    ]


def test_events_that_match_no_saga_are_logged_once_a_minute_with_their_number() -> None:
    now = 0.0
    unmatched = Unmatched(lambda: now)
    assert [unmatched.note("a"), unmatched.note("a"), unmatched.note("b")] == [1, 0, 1]
    now = 59.0
    assert unmatched.note("a") == 0
    now = 60.0
    assert unmatched.note("a") == 3
    assert unmatched.counts == {"a": 4, "b": 1}


async def _undone(trips: Trips, saga_id: str) -> None:
    await trips.handle(start(saga_id))
    await trips.handle(timed_out("a", saga_id))
    await trips.handle(answer("a:undo", Undid(), saga_id))
    assert (await trips.row(saga_id)).status == "undone"


async def test_a_late_answer_by_key_takes_the_newest_saga_up_again(database: Database) -> None:
    """As one with labels does."""
    trips = Trips(database, by_key())
    await _undone(trips, ONE)
    await _undone(trips, OTHER)
    sent = await trips.handle(Incoming(Did(), {}))
    assert commands(sent) == [(f"trips.base/{OTHER}", "a:undo#2")]
    assert [(await trips.row(each)).status for each in (ONE, OTHER)] == ["undone", "undoing"]


async def test_an_answer_by_key_is_for_the_open_saga_if_there_is_one(database: Database) -> None:
    trips = Trips(database, by_key())
    await _undone(trips, ONE)
    await trips.handle(start(OTHER), Incoming(Did(), {}))
    assert [(await trips.row(each)).status for each in (ONE, OTHER)] == ["undone", "completed"]


async def test_an_event_by_key_that_an_ended_saga_does_not_need_is_counted(
    database: Database,
) -> None:
    trips = Trips(database, by_key())
    await trips.handle(start(ONE))
    await trips.handle(Incoming(Did(), {}))
    before = await trips.row()
    assert before.status == "completed"
    await trips.handle(Incoming(Did(), {}))
    await _undone(trips, OTHER)
    await trips.handle(Incoming(Failed(), {}))
    await trips.handle(Incoming(Failed(), {}))
    assert await trips.row() == before
    assert trips.coordinator.unmatched_events() == {"parts.did": 1, "parts.failed": 2}


async def test_a_saga_that_is_open_again_leaves_its_key_to_another(database: Database) -> None:
    trips = Trips(database, by_key())
    await _undone(trips, ONE)
    await trips.handle(start(OTHER))
    with capture_logs() as logs:
        sent = await trips.handle(answer("a", Did(), ONE))
    assert commands(sent) == [(f"trips.base/{ONE}", "a:undo#2")]
    rows = [await trips.row(each) for each in (ONE, OTHER)]
    assert [(row.status, row.key) for row in rows] == [("undoing", None), ("running", "1")]
    [warning] = [each for each in logs if each["event"] == "saga has no key"]
    assert warning["saga_id"] == ONE
    assert OTHER in warning["reason"]
    await trips.handle(answer("a", Did(), OTHER))
    await trips.handle(answer("a:undo#2", Undid(), ONE))
    assert [(await trips.row(each)).status for each in (ONE, OTHER)] == ["undone", "completed"]


async def test_a_saga_that_was_started_without_a_key_gets_one_at_its_next_message(
    database: Database,
) -> None:
    trips = Trips(database, two_steps())
    await trips.handle(start(ONE), start(OTHER))
    trips.deploy(two_steps(key=lambda state: state.trip))
    await trips.handle(answer("a", Did(), ONE))
    assert [(await trips.row(each)).key for each in (ONE, OTHER)] == ["1", None]
    await trips.handle(answer("a", Did(), OTHER))  # whose key is taken
    assert (await trips.row(OTHER)).key is None
    await trips.handle(answer("b", Did(), ONE))
    await trips.handle(answer("b", Failed(), OTHER))
    await trips.handle(answer("a:undo", Undid(), OTHER))
    assert [(await trips.row(each)).status for each in (ONE, OTHER)] == ["completed", "undone"]


async def test_a_saga_gets_its_key_once_its_state_has_it(database: Database) -> None:
    saga = new_saga(key=lambda state: state.seen[0] if state.seen else None)
    first = add_step(saga, "a")

    @first.done
    def note(state: Trip, reply: Did) -> Trip:
        return state.model_copy(update={"seen": ("known",)})

    saga.flow(first >> add_step(saga, "b", undo="silent"))
    trips = Trips(database, saga)
    await trips.handle(start(ONE), start(OTHER))
    assert [(await trips.row(each)).key for each in (ONE, OTHER)] == [None, None]
    with capture_logs() as logs:
        await trips.coordinator.claim_keys(database)
    assert logs == []
    await trips.handle(answer("a", Did(), ONE))
    assert [(await trips.row(each)).key for each in (ONE, OTHER)] == ["known", None]


async def test_a_key_that_cannot_be_computed_does_not_hold_a_running_saga_up(
    database: Database,
) -> None:
    def broken(_: Trip) -> str:
        raise ValueError("no trip")

    trips = Trips(database, two_steps())
    await trips.handle(start())
    trips.deploy(two_steps(key=broken))
    with capture_logs() as logs:
        await trips.handle(answer("a", Did()))
    row = await trips.row()
    assert (row.waiting_for, row.key) == ("b", None)
    assert "no trip" in logs[-1]["reason"]


async def test_sagas_without_a_key_get_one_when_a_worker_starts(database: Database) -> None:
    trips = Trips(database, two_steps())
    third = ONE.replace("aa", "cc")
    await trips.handle(start(ONE), start(OTHER), start(third))
    await trips.handle(answer("a", Failed(), third))
    trips.deploy(two_steps(key=lambda state: state.trip))
    with capture_logs() as logs:
        await trips.coordinator.claim_keys(database)
    keys = {each: (await trips.row(each)).key for each in (ONE, OTHER, third)}
    assert keys == {ONE: "1", OTHER: None, third: None}
    assert [(each["number"], each["left"]) for each in logs if "left" in each] == [(1, 1)]
    before = await trips.row()
    await trips.coordinator.claim_keys(database)
    assert await trips.row() == before


async def test_a_completed_saga_whose_state_cannot_be_read_stays_completed(
    database: Database,
) -> None:
    trips = Trips(database, by_key())
    await trips.handle(start())
    await trips.handle(answer("a", Did()))
    await trips.spoil(state={"trip": "one"})
    before = await trips.row()
    await trips.handle(answer("a", Did()), Incoming(Did(), {}))
    assert await trips.row() == before


async def test_a_second_saga_of_one_key_is_a_dead_letter_that_says_why(database: Database) -> None:
    trips = Trips(database, with_wait())
    await trips.handle(start(ONE))
    with pytest.raises(Reject, match="with the key '1' is open already") as raised:
        await trips.handle(start(OTHER))
    assert isinstance(decide(trips.retry, 1, raised.value, 0.0), Dead)
    await trips.handle(answer("a", Failed()))
    await trips.handle(start(OTHER))  # the other one has ended


# Time-outs and dead letters


async def test_time_outs_wait_in_the_outbox_until_they_are_answered(trips: Trips) -> None:
    await trips.handle(start())
    assert await trips.timers() == {"a"}
    assert timer_id("trips.base", ONE, "a") in {row.id for row in await trips.outbox()}
    await trips.handle(answer("a", Did()))
    assert await trips.timers() == {"b"}
    await trips.handle(answer("b", Did()))
    assert await trips.timers() == set()


@pytest.mark.parametrize("operation", ["skip", "cancel", "retry"])
async def test_what_waits_for_its_delay_is_withdrawn_from_the_outbox(
    database: Database, operation: Operation
) -> None:
    trips = Trips(database, sent_again())
    await trips.handle(start())
    await trips.handle(answer("a", Failed()))
    assert await trips.waiting() == {"a#2"}
    await trips.operate(OperatorAction(operation, "by phone"))
    assert await trips.waiting() == set()


async def test_what_waits_for_its_delay_is_withdrawn_by_the_ok_of_an_earlier_attempt(
    database: Database,
) -> None:
    trips = Trips(database, sent_again())
    await trips.handle(start())
    await trips.handle(timed_out("a"))
    assert await trips.waiting() == {"a#2"}
    await trips.handle(answer("a", Did()))
    assert await trips.waiting() == set()


async def test_a_group_never_withdraws_what_it_sends(database: Database) -> None:
    """It is not in the outbox yet, so its messages are handled one by one."""
    trips = Trips(database, sent_again())
    await trips.handle(start())
    with pytest.raises(Conflict, match="is withdrawn by another message of the same group"):
        await trips.handle(timed_out("a"), answer("a", Did()))
    assert await trips.waiting() == set()


async def test_a_signal_tells_the_saga_of_a_time_out_or_a_dead_letter(trips: Trips) -> None:
    await trips.handle(start(ONE), start(OTHER))
    await trips.handle(timed_out("a", ONE), dead_lettered("a", OTHER))
    assert (await trips.row(ONE)).reason == "a: no answer within 30 s"
    assert (await trips.row(OTHER)).reason == "a: no such trip"


async def test_a_time_out_of_a_saga_that_was_purged_is_ignored(trips: Trips) -> None:
    assert await trips.handle(timed_out("a")) == []
    with pytest.raises(UnknownSaga):
        await trips.handle(dead_lettered("a"))


def test_the_id_of_a_time_out_fits_into_an_attribute() -> None:
    assert timer_id("trips.base", ONE, "a") == f"trips.base/{ONE}/a"
    assert timer_id("t" * 9999, ONE, "a").startswith("sha256:")
    assert delayed_id("trips.base", ONE, "a#2") == f"trips.base/{ONE}/a#2/command"


# Parents, operators


async def test_the_end_of_a_child_saga_answers_the_step_of_its_parent(trips: Trips) -> None:
    await trips.handle(start(sagaid="orders.fulfil/7", sagastep="book#2", correlationid="c"))
    [_, *_] = await trips.handle(answer("a", Did()))
    [end] = [e for e in await trips.handle(answer("b", Did())) if e.name == "trips.ended"]
    assert end.attributes["sagaid"] == "orders.fulfil/7"
    assert end.attributes["sagastep"] == "book#2"
    assert end.correlation_id == "c"


def asked(saga_id: str, label: str) -> Incoming:
    """The command by which the parent saga 7 starts a child saga."""
    return start(saga_id, sagaid="orders.fulfil/7", sagastep=label)


async def test_a_child_saga_that_its_parent_asks_for_again_answers_the_newest_attempt(
    database: Database,
) -> None:
    trips = Trips(database, two_steps(key=lambda state: state.trip))
    await trips.handle(asked(ONE, "book[1]"))
    assert await trips.handle(asked(OTHER, "book[1]#3")) == []
    assert await trips.handle(asked(THIRD, "book[1]#2")) == []
    [end] = [e for e in await trips.handle(answer("a", Failed())) if e.name == "trips.ended"]
    assert end.attributes["sagastep"] == "book[1]#3"
    async with database.connection() as connection:
        assert [row.id for row in await sagas.find(connection)] == [ONE]


async def test_a_child_saga_is_asked_for_again_in_the_group_that_starts_it(
    database: Database,
) -> None:
    trips = Trips(database, two_steps(key=lambda state: state.trip))
    sent = await trips.handle(asked(ONE, "book"), asked(OTHER, "book#2"))
    assert commands(sent) == [(f"trips.base/{ONE}", "a")]


async def test_a_child_saga_whose_state_cannot_be_read_keeps_its_key(database: Database) -> None:
    trips = Trips(database, two_steps(key=lambda state: state.trip))
    await trips.handle(asked(ONE, "book"))
    await trips.spoil(state={"trip": "one"})
    with pytest.raises(Reject, match="with the key '1' is open already"):
        await trips.handle(asked(OTHER, "book#2"))


@pytest.mark.parametrize(
    "attributes",
    [
        {"sagaid": "orders.fulfil/8", "sagastep": "book#2"},
        {"sagaid": "orders.fulfil/7", "sagastep": "book[1]"},
        {"sagaid": "orders.fulfil/7", "sagastep": "book:undo"},
        {"sagaid": "orders.fulfil/7", "sagastep": "book me"},
        {},
    ],
    ids=["other parent", "other item", "undo", "no label", "no parent"],
)
async def test_a_child_saga_of_an_open_key_that_another_step_asks_for_is_a_dead_letter(
    database: Database, attributes: dict[str, str]
) -> None:
    trips = Trips(database, two_steps(key=lambda state: state.trip))
    await trips.handle(asked(ONE, "book"))
    with pytest.raises(Reject, match="with the key '1' is open already"):
        await trips.handle(start(OTHER, **attributes))


async def test_the_end_of_a_saga_without_a_parent_answers_nobody(trips: Trips) -> None:
    await trips.handle(start())
    [end] = [e for e in await trips.handle(answer("a", Failed())) if e.name == "trips.ended"]
    assert not end.attributes.get("sagaid")
    assert not end.attributes.get("sagastep")


async def test_what_an_operator_does_is_in_the_log_of_the_saga(trips: Trips) -> None:
    await trips.handle(start())
    await trips.operate(OperatorAction("cancel", "a test order"))
    assert (await trips.row()).status == "cancelled"
    assert await trips.timers() == set()
    entry = (await trips.log())[-1]
    assert (entry["operator"], entry["why"]) == ("Ada", "a test order")


@pytest.mark.parametrize("operation", ["retry", "skip", "undo", "cancel"])
async def test_what_an_operator_decided_on_an_older_state_of_a_saga_is_not_done(
    trips: Trips, operation: Operation
) -> None:
    """A skip of `a` must not skip `b`, because `a` is answered while the reason is typed."""
    await trips.handle(start())
    seen = await trips.row()
    await trips.handle(answer("a", Did()))
    now, log, sent = await trips.row(), await trips.log(), len(await trips.outbox())
    with pytest.raises(Conflict, match=r"moved on since .*: it is running now, and waits for b\."):
        await trips.operate(OperatorAction(operation, "by phone", row_version=seen.row_version))
    assert (await trips.row(), await trips.log()) == (now, log)
    assert len(await trips.outbox()) == sent
    await trips.operate(OperatorAction(operation, "by phone", row_version=now.row_version))
    assert (await trips.log())[-1]["operator"] == "Ada"


async def test_two_operators_who_retry_what_both_have_seen_send_one_command(trips: Trips) -> None:
    await trips.handle(start())
    both = OperatorAction("retry", "it hangs", row_version=(await trips.row()).row_version)
    await trips.operate(both)
    with pytest.raises(Conflict, match="moved on"):
        await trips.operate(both)
    assert (await trips.row()).steps["a"]["attempt"] == 2


# Rows of other code


async def test_an_unreadable_state_parks_the_saga_and_holds_what_comes(trips: Trips) -> None:
    await trips.handle(start())
    await trips.spoil(state={"trip": "one"})
    await trips.handle(answer("a", Did()))
    row = await trips.row()
    assert (row.status, row.state) == ("parked", {"trip": "one"})
    assert "its state of version 1 is not valid as Trip: trip:" in (row.reason or "")
    entry = (await trips.log())[-1]
    assert (entry["rule"], entry["status"], entry["step"]) == ("parked", "parked", "a")
    assert entry["why"] == row.reason
    await trips.spoil(state={"trip": 1})
    await trips.operate(OperatorAction("retry", "repaired"))
    assert (await trips.row()).waiting_for == "b"


@pytest.mark.parametrize("operation", ["retry", "skip", "undo"])
async def test_what_a_saga_with_an_unreadable_state_needs_is_said(
    trips: Trips, operation: Operation
) -> None:
    await trips.handle(start())
    await trips.spoil(state={"trip": "one"})
    with pytest.raises(UsageError, match=r"Deploy code that reads such a state .* or cancel"):
        await trips.operate(OperatorAction(operation, "it hangs"))


async def test_a_saga_with_an_unreadable_state_can_be_cancelled(trips: Trips) -> None:
    await trips.handle(start())
    await trips.spoil(state={"trip": "one"})
    await trips.handle(answer("a", Did()))
    trips.deploy(two_steps(version=2))
    await trips.operate(OperatorAction("cancel", "settled by hand"))
    row = await trips.row()
    assert (row.status, row.state, row.version) == ("cancelled", {"trip": "one"}, 1)
    assert (row.waiting_for, row.reason) == ("", None)
    assert await trips.timers() == set()
    await trips.handle(answer("a", Did()))
    assert (await trips.row()).status == "cancelled"


class Unheard(Command, name="parts.unheard", version=1):
    """A command that no step is annotated with."""


def returning(command: Any) -> Saga[Trip]:
    """Steps a, and b beside c, whose function returns this, as a mistaken one may."""
    saga = new_saga()
    saga.flow(add_step(saga, "a") >> (add_step(saga, "b") & add_returning(saga, command)))
    return saga


def add_returning(saga: Saga[Trip], command: Any) -> Step[Trip, Did]:
    def c(state: Trip) -> Do:
        return command  # type: ignore[no-any-return]

    return saga.step(ok=Did, timeout="30s", no_undo="it only reads")(c)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Do(what="x" * DEFAULT_MAX_BYTES), "parts.do has 1,048,587 bytes of data"),
        (Unheard(), "published parts.unheard v1 without declaring it"),
    ],
    ids=["too large", "undeclared"],
)
async def test_a_command_that_cannot_be_sent_parks_the_saga_and_goes_on_after_the_repair(
    database: Database, last: Command, reason: str
) -> None:
    trips = Trips(database, returning(last))
    await trips.handle(start())
    assert await trips.handle(answer("a", Did())) == []  # not b either
    row = await trips.row()
    assert row.status == "parked"
    assert reason in str(row.reason)
    await trips.operate(OperatorAction("retry", "too early"))
    assert (await trips.log())[-1]["rule"] == "parked again"
    trips.deploy(returning(Do(what="c")))
    await trips.operate(OperatorAction("retry", "it is repaired"))
    assert (await trips.row()).waiting_for == "b,c"


async def test_a_first_command_that_cannot_be_sent_parks_the_saga(database: Database) -> None:
    saga = new_saga()
    saga.flow(add_returning(saga, Unheard()))
    trips = Trips(database, saga)
    assert await trips.handle(start()) == []
    assert (await trips.row()).status == "parked"
    saga = new_saga()
    saga.flow(add_returning(saga, Do(what="c")))
    trips.deploy(saga)
    await trips.operate(OperatorAction("retry", "it is repaired"))
    assert (await trips.row()).waiting_for == "c"


async def test_an_end_that_is_not_a_message_parks_the_saga(database: Database) -> None:
    def done(state: Trip) -> Ended:
        return "done"  # type: ignore[return-value]

    saga = Saga("trips.base", Trip)
    saga.starts(begin)
    saga.completed(done)
    saga.flow(add_step(saga, "a", undo="state"))
    trips = Trips(database, saga)
    await trips.handle(start())
    assert await trips.handle(answer("a", Did())) == []
    assert (await trips.row()).status == "parked"
    assert "A str is not a message" in str((await trips.row()).reason)


async def test_an_operator_with_older_code_is_told_to_deploy_the_newer_again(trips: Trips) -> None:
    trips.deploy(two_steps(version=2))
    await trips.handle(start())
    trips.deploy(two_steps(version=1))
    with pytest.raises(UsageError, match=r"has version 2, and .*: deploy the newer code"):
        await trips.operate(OperatorAction("retry", "it hangs"))


def renamed() -> Saga[Trip]:
    """Two steps, of which the first has a new name."""
    saga = new_saga()
    saga.flow(add_step(saga, "c") >> add_step(saga, "b", undo="silent"))
    return saga


def without_undo() -> Saga[Trip]:
    """Two steps, of which nothing undoes the first."""
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="none") >> add_step(saga, "b", undo="silent"))
    return saga


@pytest.mark.parametrize("operation", ["retry", "skip", "undo"])
async def test_a_saga_that_waits_for_a_step_that_is_not_in_the_code_can_only_be_cancelled(
    trips: Trips, operation: Operation
) -> None:
    """Otherwise a retry would begin the renamed step, too."""
    await trips.handle(start())
    trips.deploy(renamed())
    with pytest.raises(UsageError, match=r"waits for a, .* no such step: deploy .* or cancel"):
        await trips.operate(OperatorAction(operation, "it hangs"))
    assert [each["rule"] for each in await trips.log()] == ["started"]
    await trips.operate(OperatorAction("cancel", "settled by hand"))
    assert (await trips.row()).status == "cancelled"


async def test_an_undo_that_is_not_in_the_code_any_more_can_be_skipped(trips: Trips) -> None:
    await trips.handle(start())
    await trips.handle(answer("a", Did()), answer("b", Failed()))
    assert (await trips.row()).waiting_for == "a:undo"
    trips.deploy(without_undo())
    with pytest.raises(UsageError, match=r"no undo of a: deploy code that has it, .* or skip it"):
        await trips.operate(OperatorAction("retry", "it hangs"))
    await trips.operate(OperatorAction("skip", "undone by hand"))
    assert (await trips.row()).status == "undone"


async def test_a_saga_of_a_newer_version_is_retried_until_newer_code_is_there(
    trips: Trips,
) -> None:
    trips.deploy(two_steps(version=2))
    await trips.handle(start())
    trips.deploy(two_steps(version=1))
    with pytest.raises(NewerVersion) as raised:
        await trips.handle(answer("a", Did()))
    assert isinstance(decide(trips.retry, 1, raised.value, 0.0), RetryAfter)
    trips.deploy(two_steps(version=2))
    await trips.handle(answer("a", Did()))
    assert (await trips.row()).waiting_for == "b"


async def test_an_event_of_another_step_changes_nothing(trips: Trips) -> None:
    await trips.handle(start())
    before = await trips.row()
    assert await trips.handle(answer("a", Elsewhere())) == []
    assert await trips.row() == before
    assert parse_label(before.waiting_for) is not None
