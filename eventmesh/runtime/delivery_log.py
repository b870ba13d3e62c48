"""What the log says of deliveries. Every line that is written while one is handled, the handler's
own lines included, carries the service, the subscription and the message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.contextvars import bind_contextvars, unbind_contextvars

from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter


class DeliveryLog:
    """The log of one subscription. Binding is left to whoever writes: a line costs, and a delivery
    of which nothing is said should not."""

    def __init__(self, service: str, subscription: str) -> None:
        self._service = service
        self._subscription = subscription
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.delivery").bind()
        self._tells_all = self._log.is_enabled_for(logging.DEBUG)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around a batch: what it binds is gone afterwards."""
        bind_contextvars(service=self._service, subscription=self._subscription)
        try:
            yield
        finally:
            unbind_contextvars("service", "subscription", "message_id", "name", "correlation_id")

    def turn_to(self, delivery: Delivery) -> None:
        """From here on, until the next one, lines are about this delivery."""
        envelope = delivery.envelope
        bind_contextvars(
            message_id=envelope.id, name=envelope.name, correlation_id=envelope.correlation_id
        )

    def duplicate(self) -> None:
        """The delivery turned to has taken effect before."""
        self._log.info("duplicate passed over")

    def careful(self) -> None:
        """Something seems to kill its workers."""
        self._log.warning(
            "messages are taken one by one: one of them may be killing its worker",
            service=self._service,
            subscription=self._subscription,
        )

    def settled(self, delivery: Delivery, outcome: Outcome, error: Exception | None = None) -> None:
        """What became of a delivery."""
        if isinstance(outcome, Done) and not self._tells_all:
            return
        self.turn_to(delivery)
        match outcome:
            case Done():
                self._log.debug("done", attempt=delivery.attempt)
            case RetryAfter(delay):
                self._log.warning(
                    "will be tried again",
                    attempt=delivery.attempt,
                    delay=round(delay, 3),
                    error=repr(error),
                )
            case Dead(reason):
                self._log.error("dead letter", attempt=delivery.attempt, reason=reason)
