"""The log of deliveries: one line for each message that fails, is dead-lettered or is a duplicate.

Every line that is written while a message is handled, the handler's own lines included, carries the
service, the subscription and the message, by context variables. In a call with several messages,
lines carry the service and the subscription only.

An error of a handler is logged with its traceback the first time, and without it after that: a
message is tried eight times, and a thousand messages may fail alike. A dead letter always has the
traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.contextvars import bind_contextvars, reset_contextvars, unbind_contextvars

from eventmesh.runtime.declaring.retry import describe, summarize
from eventmesh.runtime.seen_errors import SeenErrors
from eventmesh.tracing.port import NO_CONSUMER_TRACING, NO_IDS, ConsumerTracing
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter

_OF_A_MESSAGE = ("message_id", "name", "correlation_id", "trace_id", "span_id")


class DeliveryLog:
    """The log of one subscription.

    Context is bound for each delivery only right before a line or a handler needs it, so that a
    delivery without a line costs nothing.
    """

    def __init__(
        self,
        service: str,
        subscription: str,
        seen: SeenErrors,
        tracing: ConsumerTracing = NO_CONSUMER_TRACING,
    ) -> None:
        self._service = service
        self._seen = seen
        self._tracing = tracing
        self._subscription = subscription
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.delivery").bind()
        self._logs_success = self._log.is_enabled_for(logging.DEBUG)
        # Setting them takes a third of the time of binding them, and this is done for each message.
        bound = bind_contextvars(message_id="", name="", correlation_id="")
        self._message_id, self._name, self._correlation_id = (
            bound[field].var for field in ("message_id", "name", "correlation_id")
        )
        reset_contextvars(**bound)
        self._ids = NO_IDS
        """The fields of a trace that are bound."""

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Lines within are about this subscription. What is bound meanwhile is unbound after it."""
        bind_contextvars(service=self._service, subscription=self._subscription)
        try:
            yield
        finally:
            unbind_contextvars("service", "subscription", *_OF_A_MESSAGE)
            self._ids = NO_IDS

    def turn_to(self, delivery: Delivery) -> None:
        """Lines from here on are about this delivery, until the next call."""
        envelope = delivery.envelope
        self._message_id.set(envelope.id)
        self._name.set(envelope.name)
        self._correlation_id.set(envelope.correlation_id)
        ids = self._tracing.ids_of(delivery)
        if ids is not self._ids:  # nearly all messages of a batch have the same, or none
            self._ids = ids
            bind_contextvars(**ids)

    def turn_to_batch(self) -> None:
        """Lines from here on are about several messages, until the next call of `turn_to`."""
        unbind_contextvars(*_OF_A_MESSAGE)
        self._ids = NO_IDS

    def batch_failed(self, messages: int, error: Exception) -> None:
        """A call with so many messages failed."""
        self._log.warning(
            "batch failed, handling its messages one by one",
            messages=messages,
            error=summarize(error),
            **_traceback(describe(error) if self._seen.is_new(error) else ""),
        )

    def duplicate(self, delivery: Delivery) -> None:
        """A delivery of a message that has taken effect before."""
        self.turn_to(delivery)
        self._log.info("duplicate skipped")

    def committed_despite(self, delivery: Delivery, error: Exception) -> None:
        """A commit that took effect, although this error came instead of its answer."""
        self.turn_to(delivery)
        self._log.warning("commit took effect despite an error", error=summarize(error))

    def settled(self, delivery: Delivery, outcome: Outcome, error: Exception | None = None) -> None:
        if isinstance(outcome, Done) and not self._logs_success:
            return
        self.turn_to(delivery)
        match outcome:
            case Done():
                self._log.debug("message handled", attempt=delivery.attempt)
            case RetryAfter(delay):
                details = describe(error) if error and self._seen.is_new(error) else ""
                self._log.warning(
                    "message will be retried",
                    attempt=delivery.attempt,
                    delay=round(delay, 3),
                    error=summarize(error) if error else "",
                    **_traceback(details),
                )
            case Dead(reason, details):
                self._log.error(
                    "message dead-lettered",
                    attempt=delivery.attempt,
                    reason=reason,
                    **_traceback(details),
                )


def _traceback(details: str) -> dict[str, str]:
    """The field that each log format shows as a traceback."""
    return {"exception": details} if details else {}
