"""Order within a key: what becomes of the deliveries after one that has failed; and partitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from eventmesh.transports.base import Delivery, Subscription
from eventmesh.transports.outcome import Done, Outcome


def in_effect(settlements: Iterable[tuple[Delivery, Outcome]]) -> list[tuple[Delivery, Outcome]]:
    """Of settlements in the order of their deliveries, those that have an effect on a subscription
    with an order: of each key, all up to the first that is not Done. That one takes back those that
    were received after it.

    For example, of a1 done, b1 done, a2 retried, a3 done: all but a3.
    """
    failed: set[str | None] = set()
    effective: list[tuple[Delivery, Outcome]] = []
    for delivery, outcome in settlements:
        key = delivery.envelope.key
        if key in failed:
            continue
        if not isinstance(outcome, Done):
            failed.add(key)
        effective.append((delivery, outcome))
    return effective


def settleable(
    deliveries: Iterable[Delivery], settlements: Iterable[tuple[Delivery, Outcome]]
) -> list[tuple[Delivery, Outcome]]:
    """Of the settlements of a batch, in any order, those that may be settled where the subscription
    has an order: of each key, all up to the first delivery that is not done, in their order."""
    outcomes = {id(delivery): outcome for delivery, outcome in settlements}
    stopped: set[str | None] = set()
    kept: list[tuple[Delivery, Outcome]] = []
    for delivery in deliveries:
        outcome, key = outcomes.get(id(delivery)), delivery.envelope.key
        if key in stopped:
            continue
        if outcome is not None:
            kept.append((delivery, outcome))
        if not isinstance(outcome, Done):
            stopped.add(key)
    return kept


@runtime_checkable
class HasPartitions(Protocol):
    """A transport that divides ordered subscriptions into partitions, in a number of their own."""

    async def set_partitions(self, subscription: Subscription, partitions: int) -> int | None:
        """Divide what waits for a subscription with an order among so many partitions; returns how
        many it had, None if it is not declared with an order. UsageError while workers consume it,
        or if another change was interrupted."""
        ...
