"""What the log says of deliveries. Every line that is written while one is handled, the handler's
own lines included, carries the service, the subscription and the message.

An error that a handler raised is written with its traceback the first time, and in one line after
that: a message is tried eight times, and a thousand messages may fail alike. A dead letter always
carries the traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType

import structlog
from structlog.contextvars import bind_contextvars, unbind_contextvars

from eventmesh.runtime.declaring.retry import describe, summarize
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter

_REMEMBERED_ERRORS = 100
_OF_A_MESSAGE = ("message_id", "name", "correlation_id")


class SeenErrors:
    """The last hundred different errors of one handler: a type, and where it was raised."""

    def __init__(self) -> None:
        self._seen: dict[object, None] = {}

    def is_new(self, error: Exception) -> bool:
        """Whether no error like this one is remembered; it is from now on."""
        kind = type(error), tuple(_places(error))
        is_new = kind not in self._seen
        self._seen.pop(kind, None)
        self._seen[kind] = None  # last: a dict keeps the order
        if len(self._seen) > _REMEMBERED_ERRORS:
            del self._seen[next(iter(self._seen))]
        return is_new


def _places(error: Exception) -> Iterator[tuple[CodeType, int]]:
    """The lines through which it went, without ours: a message alone takes another way through
    EventMesh than one in a group."""
    step = error.__traceback__
    while step is not None:
        if not step.tb_frame.f_globals.get("__name__", "").startswith("eventmesh."):
            yield step.tb_frame.f_code, step.tb_lineno
        step = step.tb_next


class DeliveryLog:
    """The log of one subscription. Binding is left to whoever writes: a line costs, and a delivery
    of which nothing is said should not."""

    def __init__(self, service: str, subscription: str, seen: SeenErrors) -> None:
        self._service = service
        self._seen = seen
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
            unbind_contextvars("service", "subscription", "messages", *_OF_A_MESSAGE)

    def turn_to(self, delivery: Delivery) -> None:
        """From here on, until the next one, lines are about this delivery."""
        envelope = delivery.envelope
        bind_contextvars(
            message_id=envelope.id, name=envelope.name, correlation_id=envelope.correlation_id
        )

    def turn_to_batch(self, messages: int) -> None:
        """From here on, lines are about one call of a handler with so many messages."""
        unbind_contextvars(*_OF_A_MESSAGE)
        bind_contextvars(messages=messages)

    def batch_failed(self, messages: int, error: Exception) -> None:
        """A call with several messages failed, and one of them may be to blame: each is handled
        again, alone."""
        self._log.warning(
            "batch failed, handling its messages one by one",
            messages=messages,
            error=summarize(error),
            **_traceback(describe(error) if self._seen.is_new(error) else ""),
        )
        unbind_contextvars("messages")

    def duplicate(self, delivery: Delivery) -> None:
        """It has taken effect before."""
        self.turn_to(delivery)
        self._log.info("duplicate passed over")

    def settled(self, delivery: Delivery, outcome: Outcome, error: Exception | None = None) -> None:
        """What became of a delivery."""
        if isinstance(outcome, Done) and not self._tells_all:
            return
        self.turn_to(delivery)
        match outcome:
            case Done():
                self._log.debug("done", attempt=delivery.attempt)
            case RetryAfter(delay):
                details = describe(error) if error and self._seen.is_new(error) else ""
                self._log.warning(
                    "will be tried again",
                    attempt=delivery.attempt,
                    delay=round(delay, 3),
                    error=summarize(error) if error else "",
                    **_traceback(details),
                )
            case Dead(reason, details):
                self._log.error(
                    "dead letter",
                    attempt=delivery.attempt,
                    reason=reason,
                    **_traceback(details),
                )


def _traceback(details: str) -> dict[str, str]:
    """The field that every format of the log shows as a traceback."""
    return {"exception": details} if details else {}
