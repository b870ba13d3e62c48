"""Loyalty points: choreography beside the saga.

Whoever orders gets points at once, and loses them if the order is cancelled. The saga of orders
does not know of them, and waits for nobody here.
"""

from __future__ import annotations

from sqlalchemy import update

from eventmesh import Transaction
from services.guarded_updates import changes_a_row
from services.payments.contracts import OrderCancelled, OrderPlaced
from services.payments.handlers import service
from services.payments.models import LoyaltyAccount


@service.reaction(OrderPlaced, undone_by=OrderCancelled)
async def give_points(event: OrderPlaced, tx: Transaction) -> tuple[str, int]:
    """One point for each whole dollar; returns the card and its points."""
    points = int(event.amount)
    if not await _add(tx, event.card, points):
        tx.session.add(LoyaltyAccount(card=event.card, points=points))
    return event.card, points


@give_points.undo
async def take_back(event: OrderCancelled, given: tuple[str, int], tx: Transaction) -> None:
    """Take back what was given, whatever the rules are by now."""
    card, points = given
    await _add(tx, card, -points)


async def _add(tx: Transaction, card: str, points: int) -> bool:
    """Change the points of an account; returns false if the card has none yet."""
    change = (
        update(LoyaltyAccount)
        .where(LoyaltyAccount.card == card)
        .values(points=LoyaltyAccount.points + points)
    )
    return await changes_a_row(tx, change)
