"""What must be true in the end, whatever was killed, and what is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from eventmesh.wire.envelope import Envelope
from tests.crash.shop import NUMBERS, ORDERED, REFUSED, SUBSCRIPTIONS
from tests.crash.world import World

_OUTBOX = "SELECT key, parked FROM eventmesh_outbox ORDER BY seq"
_EFFECTS = "SELECT subscription, account, number FROM effects ORDER BY id"
_INBOX = "SELECT subscription, count(*) FROM eventmesh_inbox GROUP BY subscription"
_STARTS = "SELECT * FROM eventmesh_start"
_LEASES = "SELECT owner FROM eventmesh_lease WHERE expires_at > '2001-01-01'"
_BROKER = ("queue", "dead_letter", "unrouted")


async def is_quiet(world: World) -> bool:
    """Whether nothing is under way: the broker holds nothing, and the outboxes only what the
    broker refuses."""
    [[(held,)]] = world.held("SELECT count(*) FROM queue")
    if held:
        return False
    [waiting] = await world.ask("desk", _OUTBOX)
    return all(key == REFUSED for key, _ in waiting) and any(parked for _, parked in waiting)


async def faults(world: World, *, ordered: bool = True) -> list[str]:
    """What is not as it must be; nothing when all is well."""
    found: list[str] = []
    for service, names in SUBSCRIPTIONS.items():
        waiting, effects, claimed, starts, leases = await world.ask(
            service, _OUTBOX, _EFFECTS, _INBOX, _STARTS, _LEASES
        )
        for name in names:
            mine = [(account, number) for each, account, number in effects if each == name]
            found += _effects_of(name, mine, ordered=ordered)
            if (number := dict(claimed).get(name)) != len(NUMBERS):
                found.append(f"{name}: {number} messages in the inbox")
        if starts:
            found.append(f"{service}: starts are still counted")
        if leases:
            found.append(f"{service}: leases are still held")
        left = [(key, bool(parked)) for key, parked in waiting]
        if left != ([(REFUSED, True), (REFUSED, False)] if service == "desk" else []):
            found.append(f"{service}: the outbox holds {left}")
    counts = world.held(*(f"SELECT count(*) FROM {table}" for table in _BROKER))  # noqa: S608  # constants
    for table, [(number,)] in zip(_BROKER, counts, strict=True):
        if number:
            found.append(f"the broker's {table} holds {number}")
    return found


async def faults_of_order(world: World, sent: Sequence[Envelope]) -> list[str]:
    """Of each message's first time on its way, those that were not in the order in which the desk
    committed those of their key. Workers that compete commit in any order, which a server's tables
    do not tell."""
    [effects] = await world.ask("desk", _EFFECTS)
    found = []
    for account, numbers in ORDERED.items():
        orders = {"desk.take": numbers}
        if not world.has_server:
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
                found.append(f"{name}: of {account}, {order} were sent in this order")
    return found


def _effects_of(name: str, effects: list[tuple[str, int]], *, ordered: bool) -> list[str]:
    found = []
    times = Counter(number for _, number in effects)
    if lost := sorted(set(NUMBERS) - set(times)):
        found.append(f"{name}: lost {lost}")
    if doubled := sorted(number for number, count in times.items() if count > 1):
        found.append(f"{name}: done twice {doubled}")
    if unknown := sorted(set(times) - set(NUMBERS)):
        found.append(f"{name}: not promised {unknown}")
    for account, numbers in ORDERED.items():
        order = tuple(dict.fromkeys(number for each, number in effects if each == account))
        if ordered and order != numbers and set(order) == set(numbers):
            found.append(f"{name}: {account} in the order {order}")
    return found
