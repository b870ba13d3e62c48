"""What must be true at the end of every schedule, whatever was killed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from eventmesh.wire.envelope import Envelope
from tests.crash.deployment import Deployment
from tests.crash.services import NUMBERS, ORDERED, REFUSED, SUBSCRIPTIONS

_OUTBOX = "SELECT key, parked FROM eventmesh_outbox ORDER BY seq"
_EFFECTS = "SELECT subscription, account, number FROM effects ORDER BY id"
_INBOX = "SELECT subscription, count(*) FROM eventmesh_inbox GROUP BY subscription"
_COUNTS = """
SELECT what, subscription, sum(number) FROM eventmesh_count GROUP BY what, subscription
"""
_STARTS = "SELECT * FROM eventmesh_start"
_LEASES = "SELECT owner FROM eventmesh_lease WHERE expires_at > '2001-01-01'"
_BROKER = ("queue", "dead_letter", "unrouted")


async def is_idle(deployment: Deployment) -> bool:
    """Whether nothing is left to do: the queues are empty, and the outbox holds only what the
    broker rejects."""
    [[(held,)]] = deployment.query_broker("SELECT count(*) FROM queue")
    if held:
        return False
    [waiting] = await deployment.query("desk", _OUTBOX)
    return all(key == REFUSED for key, _ in waiting) and any(parked for _, parked in waiting)


async def violations(deployment: Deployment, *, ordered: bool = True) -> list[str]:
    """The invariants that do not hold, in words; empty when all do."""
    found: list[str] = []
    for service, names in SUBSCRIPTIONS.items():
        waiting, effects, claimed, starts, leases, counted = await deployment.query(
            service, _OUTBOX, _EFFECTS, _INBOX, _STARTS, _LEASES, _COUNTS
        )
        counts = {(what, subscription): int(number) for what, subscription, number in counted}
        stored, relayed = (counts.get((what, ""), 0) for what in ("stored", "relayed"))
        if stored != relayed + len(waiting):
            found.append(f"{service}: {stored} stored, {relayed} relayed, {len(waiting)} wait")
        for name in names:
            mine = [(account, number) for each, account, number in effects if each == name]
            found += _effects_of(name, mine, ordered=ordered)
            if (number := dict(claimed).get(name)) != len(NUMBERS):
                found.append(f"{name}: {number} messages in the inbox")
            if (handled := counts.get(("handled", name))) != number:
                found.append(f"{name}: {handled} messages were counted as handled")
        if starts:
            found.append(f"{service}: starts of handlers are still recorded")
        if leases:
            found.append(f"{service}: leases are still held")
        left = [(key, bool(parked)) for key, parked in waiting]
        if left != ([(REFUSED, True), (REFUSED, False)] if service == "desk" else []):
            found.append(f"{service}: the outbox holds {left}")
    held = deployment.query_broker(*(f"SELECT count(*) FROM {table}" for table in _BROKER))  # noqa: S608  # constants
    for table, [(number,)] in zip(_BROKER, held, strict=True):
        if number:
            found.append(f"the broker's {table} holds {number}")
    return found


async def order_violations(deployment: Deployment, sent: Sequence[Envelope]) -> list[str]:
    """The keys whose messages were first published in another order than they were committed.

    The commit order of the desk's events is read from the effects table. On a server, competing
    workers commit in any order and the table does not show which, so only commands are checked.
    """
    [effects] = await deployment.query("desk", _EFFECTS)
    found = []
    for account, numbers in ORDERED.items():
        orders = {"desk.take": numbers}
        if not deployment.has_server:
            orders["desk.taken"] = tuple(number for _, each, number in effects if each == account)
        for name, committed in orders.items():
            order = tuple(
                dict.fromkeys(
                    json.loads(each.data)["number"]
                    for each in sent
                    if each.name == name and each.key == account
                )
            )
            if order != committed:
                found.append(f"{name}: messages of {account} were sent in the order {order}")
    return found


def _effects_of(name: str, effects: list[tuple[str, int]], *, ordered: bool) -> list[str]:
    found = []
    times = Counter(number for _, number in effects)
    if lost := sorted(set(NUMBERS) - set(times)):
        found.append(f"{name}: lost {lost}")
    if doubled := sorted(number for number, count in times.items() if count > 1):
        found.append(f"{name}: handled twice {doubled}")
    if unknown := sorted(set(times) - set(NUMBERS)):
        found.append(f"{name}: never sent {unknown}")
    for account, numbers in ORDERED.items():
        order = tuple(dict.fromkeys(number for each, number in effects if each == account))
        if ordered and order != numbers and set(order) == set(numbers):
            found.append(f"{name}: {account} was handled in the order {order}")
    return found
