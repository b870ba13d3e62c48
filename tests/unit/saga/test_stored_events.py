"""Events that a saga has stored are read by newer code as newly delivered ones are: upcast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from eventmesh import Event, Saga, SagaFailure
from eventmesh.saga.draft import Transition
from eventmesh.saga.happening import Answered, Happening, OperatorAction, hold_as
from eventmesh.saga.record import Parking, SagaRecord, Stored, UnitRecord, stored
from eventmesh.saga.transition import advance
from tests.unit.saga.trips import Booked, Did, Do, Ended, Trip, Undo, through_a_row


class PaidCents(Event, name="parts.paid", version=1):
    total: int = Field(alias="sum")


class Paid(Event, name="parts.paid", version=2):
    euros: int


@Paid.upcaster(from_version=1)
def to_euros(data: dict[str, Any]) -> dict[str, Any]:
    return {"euros": data["sum"] // 100}


class RefusedInWords(Event, name="parts.refused", version=1):
    words: str


class Refused(Event, name="parts.refused", version=2):
    code: int


@Refused.upcaster(from_version=1)
def to_code(data: dict[str, Any]) -> dict[str, Any]:
    return {"code": len(data["words"])}


class OldNote(Event, name="parts.noted", version=1):
    text: str = ""


class Noted(Event, name="parts.noted", version=2):
    text: str | None


def begin(event: Booked) -> Trip:
    return Trip()


paying = Saga("trips.base", Trip, key=lambda state: state.trip)
paying.starts(begin)


@paying.step(ok=Paid, timeout="1m")
def pay(state: Trip) -> Do:
    return Do(what="pay")


@pay.undo()
def pay_back(state: Trip, reply: Paid) -> Undo:
    return Undo(what="pay", reply=f"{reply.euros} euros")


@paying.step(ok=Did, failed=Refused, timeout="1m", no_undo="it only reads")
def check(state: Trip) -> Do:
    return Do(what="check")


note = paying.wait("note", ok=Noted, timeout="1m", correlate=lambda event: 1)
deposit = paying.wait("deposit", ok=Paid, timeout="1m", correlate=lambda event: 1)


@deposit.done
def remember(state: Trip, reply: Paid) -> Trip:
    return state.model_copy(update={"seen": (f"{reply.euros} euros",)})


paying.flow(pay >> check >> (note & deposit))


@paying.undone
def announce(state: Trip, failure: Refused | SagaFailure) -> Ended:
    return Ended(how=f"code {failure.code}" if isinstance(failure, Refused) else failure.reason)


SENT = UnitRecord("sent")


def told(record: SagaRecord, happening: Happening) -> Transition:
    """What happens to a saga whose row older code has written."""
    definition = paying.definition
    return advance(definition, through_a_row(definition, record), happening)


def undone_after(kept: Stored) -> Transition:
    """A saga that is undone after this answer to its payment."""
    units = {"pay": UnitRecord("done", answer=kept), "check": SENT}
    return told(SagaRecord("running", Trip(), units), Answered(Refused(code=1), "check"))


def reply_to_undo(kept: Stored) -> str | None:
    [sending] = undone_after(kept).sendings
    assert isinstance(sending.command, Undo)
    return sending.command.reply


def test_an_undo_gets_the_reply_of_an_older_version_upcast() -> None:
    assert reply_to_undo(stored(PaidCents(sum=500))) == "5 euros"
    assert reply_to_undo(stored(Paid(euros=500))) == "500 euros"


def test_the_end_gets_the_failure_of_an_older_version_upcast() -> None:
    units = {"pay": UnitRecord("undone"), "check": UnitRecord("undo_sent")}
    failure = ("check", stored(RefusedInWords(words="no money")))
    record = SagaRecord("undoing", Trip(), units, failure=failure)
    assert told(record, OperatorAction("skip", "by hand")).ending == Ended(how="code 8")


def test_an_event_of_an_older_version_that_came_early_is_upcast() -> None:
    units = {"pay": UnitRecord("done", answer=stored(Paid(euros=1))), "check": SENT}
    record = SagaRecord("running", Trip(), units, early={"deposit": stored(PaidCents(sum=700))})
    assert told(record, Answered(Did(), "check")).record.state == Trip(seen=("7 euros",))


def test_an_event_of_an_older_version_that_was_held_is_upcast() -> None:
    held = hold_as(Answered(PaidCents(sum=900), "deposit"))
    units = {name: UnitRecord("skipped") for name in ("pay", "check", "note")}
    record = SagaRecord("parked", Trip(), {**units, "deposit": SENT}, held=(held,))
    record = replace(record, parking=Parking("running", "its code failed"))
    after = told(record, OperatorAction("retry", "it is repaired")).record
    assert (after.status, after.state) == ("completed", Trip(seen=("9 euros",)))


def test_an_older_version_without_an_upcaster_is_read_as_it_is() -> None:
    units = {"pay": UnitRecord("skipped"), "check": SENT, "deposit": UnitRecord("skipped")}
    record = SagaRecord("running", Trip(), units, early={"note": stored(OldNote(text="hi"))})
    assert told(record, Answered(Did(), "check")).record.status == "completed"


def test_an_event_that_was_stored_without_a_version_has_the_current_one_if_that_is_valid() -> None:
    assert reply_to_undo(Stored("parts.paid", {"euros": 500})) == "500 euros"
    assert reply_to_undo(Stored("parts.paid", {"sum": 500})) == "5 euros"


def test_an_event_of_a_newer_version_parks_the_saga_and_says_what_is_known() -> None:
    transition = undone_after(Stored("parts.paid", {"euros": 1}, version=3))
    assert transition.record.reason == (
        "the stored parts.paid cannot be read: it has version 3, and this code reads parts.paid v2"
    )


def test_an_event_that_cannot_be_read_parks_the_saga_and_says_why_in_one_line() -> None:
    wrong = undone_after(Stored("parts.paid", {"euros": "many"}, version=2)).record
    assert wrong.reason is not None
    assert wrong.reason.startswith(
        "the stored parts.paid cannot be read: the data is not a valid parts.paid v2: euros: "
    )
    assert "\n" not in wrong.reason
    assert "many" not in wrong.reason  # a value may be secret
    assert "the upcaster of parts.paid from version 1 failed" in str(
        undone_after(Stored("parts.paid", {}, version=1)).record.reason
    )
