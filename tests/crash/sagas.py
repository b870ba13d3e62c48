"""Two services with a saga between them: three of its sagas end in each of its ways, whatever is
killed meanwhile.

    sold     reserve, capture                               completed
    short    reserve, capture declined, release             undone
    broken   reserve becomes a dead letter, release         undone

Nobody knows of a dead letter how far it came, so its step is undone, too.
"""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel

from eventmesh import Command, Event, Reject, Saga, SagaFailure, Service, Transaction
from eventmesh.clock import Clock
from tests.crash.deployment import Deployment
from tests.crash.services import METADATA, SOON, Effect

SALES = {"sold": 1, "short": 2, "broken": 3}
ENDS = {"sold": "completed", "short": "undone", "broken": "undone"}

EFFECTS = Counter(
    {
        ("ledger.reserve", "sold"): 1,
        ("ledger.reserve", "short"): 1,
        ("ledger.capture", "sold"): 1,
        ("ledger.capture", "short"): 1,
        ("ledger.release", "short"): 1,
        ("ledger.release", "broken"): 1,
        ("ledger.closed", "sold"): 1,
        ("ledger.cancelled", "short"): 1,
        ("ledger.cancelled", "broken"): 1,
    }
)
"""How often each subscription has handled each sale, and what it did was committed."""

MESSAGES = 10
"""What the coordinator handles: three starts, two reservations, a capture, a refusal of one, the
runtime's signal of a dead letter, and two releases."""


class Sale(Event, name="desk.sale_opened", version=1, key="account"):
    account: str


class Closed(Event, name="desk.sale_closed", version=1, key="account"):
    account: str


class Cancelled(Event, name="desk.sale_cancelled", version=1, key="account"):
    account: str


class Reserve(Command, name="ledger.reserve", version=1, key="account"):
    account: str


class Reserved(Event, name="ledger.reserved", version=1, key="account"):
    account: str


class Release(Command, name="ledger.release", version=1, key="account"):
    account: str


class Released(Event, name="ledger.released", version=1, key="account"):
    account: str


class Capture(Command, name="ledger.capture", version=1, key="account"):
    account: str


class Captured(Event, name="ledger.captured", version=1, key="account"):
    account: str


class Declined(Event, name="ledger.declined", version=1, key="account"):
    account: str


class State(BaseModel):
    account: str


def make_services(clock: Clock) -> list[Service]:
    """The desk, which has the saga, and the ledger, which takes part."""
    return [_make_desk(clock), _make_ledger(clock)]


def _make_desk(clock: Clock) -> Service:
    desk = Service("desk", metadata=METADATA, clock=clock)
    desk.publisher(Sale)
    saga = Saga("desk.sell", State)

    @saga.starts
    def begin(event: Sale) -> State:
        return State(account=event.account)

    # No time-out is due while workers are started again, but each is set and cancelled.
    @saga.step(ok=Reserved, timeout="30d")
    def reserve(state: State) -> Reserve:
        return Reserve(account=state.account)

    @reserve.undo(ok=Released, timeout="30d")
    def release(state: State) -> Release:
        return Release(account=state.account)

    @saga.pivot(ok=Captured, failed=Declined, timeout="30d")
    def capture(state: State) -> Capture:
        return Capture(account=state.account)

    saga.flow(reserve >> capture)

    @saga.completed
    def closed(state: State) -> Closed:
        return Closed(account=state.account)

    @saga.undone
    def cancelled(state: State, failure: Declined | SagaFailure) -> Cancelled:
        return Cancelled(account=state.account)

    desk.include(saga)
    return desk


def _make_ledger(clock: Clock) -> Service:
    ledger = Service("ledger", metadata=METADATA, clock=clock)

    @ledger.subscriber(Reserve, retry=SOON)
    async def reserve(command: Reserve, tx: Transaction) -> Reserved:
        if command.account == "broken":
            raise Reject("nobody can reserve that")
        await _enter(tx, "ledger.reserve", command.account)
        return Reserved(account=command.account)

    @ledger.subscriber(Release, retry=SOON)
    async def release(command: Release, tx: Transaction) -> Released:
        await _enter(tx, "ledger.release", command.account)
        return Released(account=command.account)

    @ledger.subscriber(Capture, retry=SOON)
    async def capture(command: Capture, tx: Transaction) -> Captured | Declined:
        await _enter(tx, "ledger.capture", command.account)
        if command.account == "short":
            return Declined(account=command.account)
        return Captured(account=command.account)

    @ledger.subscriber(Closed, retry=SOON)
    async def closed(event: Closed, tx: Transaction) -> None:
        await _enter(tx, "ledger.closed", event.account)

    @ledger.subscriber(Cancelled, retry=SOON)
    async def cancelled(event: Cancelled, tx: Transaction) -> None:
        await _enter(tx, "ledger.cancelled", event.account)

    return ledger


async def _enter(tx: Transaction, subscription: str, account: str) -> None:
    tx.session.add(Effect(subscription=subscription, account=account, number=SALES[account]))
    await tx.session.flush()


async def open_sales(desk: Service) -> None:
    """Put the events that start the sagas into the desk's outbox."""
    async with desk.transaction() as tx:
        for account in SALES:
            tx.publish(Sale(account=account))


async def is_idle(deployment: Deployment) -> bool:
    """Whether nothing is left to do: the queues and the outboxes are empty, so that every time-out
    was cancelled, too."""
    [[(held,)]] = deployment.query_broker("SELECT count(*) FROM queue")
    if held:
        return False
    count = "SELECT count(*) FROM eventmesh_outbox"
    counts = [(await deployment.query(service, count))[0] for service in ("desk", "ledger")]
    return counts == [[(0,)], [(0,)]]


async def violations(deployment: Deployment) -> list[str]:
    """What is not as it must be, once all sagas have ended; in words."""
    found = []
    [effects] = await deployment.query("ledger", "SELECT subscription, account FROM effects")
    if (happened := Counter(effects)) != EFFECTS:
        found.append(
            f"too much was done: {happened - EFFECTS}, or too little: {EFFECTS - happened}"
        )
    sagas, handled, logged = await deployment.query(
        "desk",
        "SELECT state, status FROM eventmesh_saga",
        "SELECT count(*) FROM eventmesh_inbox WHERE subscription = 'desk.sell.saga'",
        "SELECT saga_id, count(*) FROM eventmesh_saga_log GROUP BY saga_id",
    )
    ends = {account: status for state, status in sagas for account in SALES if account in state}
    if ends != ENDS or len(sagas) != len(ENDS):
        found.append(f"the sagas ended otherwise: {ends}")
    if handled != [(MESSAGES,)]:
        found.append(f"the coordinator handled {handled} messages")
    if sum(lines for _, lines in logged) != MESSAGES or len(logged) != len(ENDS):
        found.append(f"the logs have other lines: {logged}")
    letters, unrouted = deployment.query_broker(
        "SELECT DISTINCT subscription FROM dead_letter", "SELECT count(*) FROM unrouted"
    )
    if letters != [("ledger.reserve",)] or unrouted != [(0,)]:
        found.append(
            f"the broker holds dead letters of {letters}, and {unrouted} unrouted messages"
        )
    return found
