"""The handlers of the service payments.

A command may come twice, because whoever sent it has waited too long for the answer: an order is
paid once. A refund names its payment, so it never comes before the capture.
"""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import exists, select, update

from eventmesh import Envelope, Reject, Retry, Service, Transaction, exponential
from services import drill
from services.guarded_updates import changes_a_row
from services.payments.contracts import (
    CapturePayment,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    RefundPayment,
)
from services.payments.models import Base, Card, Payment

service = Service("payments", metadata=Base.metadata)


@service.subscriber(CapturePayment, retry=Retry(attempts=8, backoff=exponential("200ms", cap="1m")))
async def capture(
    command: CapturePayment, envelope: Envelope, tx: Transaction
) -> PaymentCaptured | PaymentDeclined:
    """Capture the payment, unless it would exceed the card's limit."""
    drill.meet_outage("payments", command.amount, envelope)
    cents = round(command.amount * 100)
    if not await _charge(tx, command.order_id, command.card, cents):
        earlier = await tx.session.scalar(
            select(Payment).where(Payment.order_id == command.order_id)
        )
        if earlier is not None:
            return PaymentCaptured(
                order_id=earlier.order_id, payment_id=earlier.payment_id, amount=command.amount
            )
        return PaymentDeclined(order_id=command.order_id, reason="card limit reached")
    payment = Payment(payment_id=uuid4(), order_id=command.order_id, card=command.card, cents=cents)
    tx.session.add(payment)
    return PaymentCaptured(
        order_id=command.order_id, payment_id=payment.payment_id, amount=command.amount
    )


@service.subscriber(RefundPayment)
async def refund(command: RefundPayment, tx: Transaction) -> PaymentRefunded:
    """Refund the payment."""
    payment = await tx.session.get(Payment, command.payment_id)
    if payment is None:
        raise Reject(f"there is no payment {command.payment_id}")
    if payment.status == "captured":
        payment.status = "refunded"
        await tx.session.execute(
            update(Card)
            .where(Card.card == payment.card)
            .values(spent_cents=Card.spent_cents - payment.cents)
            .execution_options(synchronize_session=False)
        )
    return PaymentRefunded(order_id=command.order_id, payment_id=command.payment_id)


async def _charge(tx: Transaction, order_id: UUID, card: str, cents: int) -> bool:
    """Charge the card if its limit allows and the order is not paid yet; one statement, because
    others may charge it too."""
    charge = (
        update(Card)
        .where(
            Card.card == card,
            Card.spent_cents + cents <= Card.limit_cents,
            ~exists().where(Payment.order_id == order_id),
        )
        .values(spent_cents=Card.spent_cents + cents)
    )
    if await changes_a_row(tx, charge):
        return True
    if await tx.session.get(Card, card):
        return False
    tx.session.add(Card(card=card))
    await tx.session.flush()
    return await changes_a_row(tx, charge)
