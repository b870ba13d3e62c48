"""The approval of large orders by a person, as the endpoint of a web application would record it.

The saga asks for it by a command and waits. The decision comes later, in a transaction that has
nothing to do with the saga's messages, so its event carries no labels and finds its saga by the
order's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.guarded_updates import changes_a_row
from services.orders.contracts import OrderApproved, OrderRejected, RequestApproval
from services.orders.handlers import service
from services.orders.models import Approval

service.publisher(OrderApproved)
service.publisher(OrderRejected)


@service.subscriber(RequestApproval)
async def request_approval(command: RequestApproval, session: AsyncSession) -> None:
    """Put the order on the list of those to be decided, unless it is on it."""
    if await session.get(Approval, command.order_id) is None:
        session.add(Approval(order_id=command.order_id, cents=round(command.amount * 100)))


async def undecided(most: int = 100) -> Sequence[tuple[UUID, int]]:
    """The ids and amounts in cents of orders that wait for a decision."""
    query = select(Approval.order_id, Approval.cents).where(Approval.decision.is_(None))
    async with service.transaction() as tx:
        rows = await tx.session.execute(query.order_by(Approval.order_id).limit(most))
        return [(order_id, cents) for order_id, cents in rows]


async def decide(order_id: UUID, *, approve: bool, by: str, reason: str = "") -> bool:
    """Approve or reject an order; returns false if no decision on it is awaited."""
    decision = (
        update(Approval)
        .where(Approval.order_id == order_id, Approval.decision.is_(None))
        .values(decision="approved" if approve else "rejected", decided_by=by)
    )
    async with service.transaction() as tx:
        if not await changes_a_row(tx, decision):
            return False
        tx.publish(
            OrderApproved(order_id=order_id, decided_by=by)
            if approve
            else OrderRejected(order_id=order_id, decided_by=by, reason=reason)
        )
        return True
