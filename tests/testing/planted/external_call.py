"""A handler whose call of another company's service is not idempotent.

The call takes effect before the transaction does. If the worker is killed, or its commit aborted,
after the call, the message is handled again, and the card is charged again.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from eventmesh import Command, Event, Service
from eventmesh.testing.mesh import Mesh


class Gateway:
    """The company that charges cards: a fake with its interface."""

    def __init__(self) -> None:
        self.charges: list[str] = []
        self._answered = set[str]()

    async def charge(self, order: str, *, idempotency_key: str | None = None) -> None:
        await asyncio.sleep(0.05)
        if idempotency_key is None or idempotency_key not in self._answered:
            self.charges.append(order)
        if idempotency_key is not None:
            self._answered.add(idempotency_key)
        await asyncio.sleep(0.05)


class ChargeOrder(Command, name="billing.charge_order", version=1, key="order"):
    order: str


class OrderCharged(Event, name="billing.order_charged", version=1, key="order"):
    order: str


gateway = Gateway()

broken = Service("billing")


@broken.subscriber(ChargeOrder, name="charge")
async def charge_again(command: ChargeOrder) -> OrderCharged:
    await gateway.charge(command.order)
    return OrderCharged(order=command.order)


corrected = Service("billing")


@corrected.subscriber(ChargeOrder)
async def charge(command: ChargeOrder) -> OrderCharged:
    await gateway.charge(command.order, idempotency_key=command.order)
    return OrderCharged(order=command.order)


async def body(mesh: Mesh, billing: Service) -> None:
    gateway.__init__()  # type: ignore[misc]  # another company, for each run

    @mesh.eventually
    def each_order_is_charged_once(_read):  # type: ignore[no-untyped-def]
        assert Counter(gateway.charges) == {"o1": 1, "o2": 1}

    await mesh.start(billing)
    await mesh.publish(ChargeOrder(order="o1"))
    await mesh.publish(ChargeOrder(order="o2"))
