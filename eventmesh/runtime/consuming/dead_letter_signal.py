"""Tells a saga that one of its commands has been dead-lettered.

A participant knows nothing of sagas, and its handler has failed for good: so the runtime answers in
its place, before it settles the delivery. The signal is a command of the saga's own, which its
coordinator handles. A worker that is killed in between tells the saga twice, which the coordinator
skips as already processed; a handler that succeeds after all is a late answer, and is undone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping

import structlog
from pydantic_core import to_json

from eventmesh.clock import Clock
from eventmesh.contracts.message import Command, Message
from eventmesh.tracing.port import NO_TRACING, Tracing
from eventmesh.transports.base import Delivery, Transport
from eventmesh.transports.outcome import Dead, Outcome
from eventmesh.wire.envelope import TRACE_CONTEXT, UNIQUE_ID, Envelope

SIGNAL_SUFFIX = ".signal"
"""What follows a saga's name in the name of the command by which it is told."""

_SAGA = re.compile(rf"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+/({UNIQUE_ID.pattern})")
_MOST_CHARACTERS = 1_000
"""Of a reason: it is kept with the saga, and shown to operators."""


async def tell_sagas(
    settlements: Iterable[tuple[Delivery, Outcome]],
    models: Mapping[str, type[Message]],
    transport: Transport,
    *,
    service: str,
    clock: Clock,
    log: structlog.stdlib.BoundLogger,
    tracing: Tracing = NO_TRACING,
) -> None:
    """Tell sagas which of their commands are about to be dead-lettered; Unreachable, upon which
    nothing may be settled."""
    signals = dead_letter_signals(settlements, models, service=service, clock=clock)
    if not signals:
        return
    with tracing.sending(signals) as answered:
        result = await transport.publish(signals)
        answered(result)
    for message_id, reason in result.rejected.items():
        # Nothing is lost: the command is a dead letter, and its saga has a time-out.
        log.error("saga not told of dead letter", message_id=message_id, reason=reason)
    if result.error is not None:
        raise result.error


def dead_letter_signals(
    settlements: Iterable[tuple[Delivery, Outcome]],
    models: Mapping[str, type[Message]],
    *,
    service: str,
    clock: Clock,
) -> list[Envelope]:
    """A signal for each command of a saga among the deliveries that are dead-lettered."""
    return [
        _signal(delivery.envelope, outcome.reason, service, clock)
        for delivery, outcome in settlements
        if isinstance(outcome, Dead) and is_saga_command(delivery.envelope, models)
    ]


def is_saga_command(envelope: Envelope, models: Mapping[str, type[Message]]) -> bool:
    """Whether a saga waits for an answer to this message: a command with its labels. An event that
    carries them is an answer itself, and whoever else subscribes to it is not waited for."""
    model = models.get(envelope.name)
    return (
        model is not None
        and issubclass(model, Command)
        and not model.__is_internal__
        and bool(envelope.attributes.get("sagastep"))
        and _SAGA.fullmatch(envelope.attributes.get("sagaid", "")) is not None
    )


def _signal(envelope: Envelope, reason: str, service: str, clock: Clock) -> Envelope:
    saga, _, saga_id = envelope.attributes["sagaid"].partition("/")
    name = saga + SIGNAL_SUFFIX
    data = to_json(
        {
            "saga_id": saga_id,
            "label": envelope.attributes["sagastep"],
            "what": "dead_lettered",
            "reason": reason[:_MOST_CHARACTERS],
        }
    )
    # In the trace of the command, whose handling ended with it.
    trace = {
        attribute: envelope.attributes[attribute]
        for attribute in TRACE_CONTEXT
        if attribute in envelope.attributes
    }
    return Envelope(
        {
            **trace,
            "specversion": "1.0",
            # The same whoever says it, so that it takes effect once; and another one for another
            # reason, since an id stands for one content.
            "id": f"dead-lettered:{envelope.unique_id}:{zlib.crc32(data):08x}",
            "source": f"/{service}",
            "type": name,
            "dataschema": f"urn:eventmesh:{name}:1",
            "datacontenttype": "application/json",
            "time": clock.now().isoformat().replace("+00:00", "Z"),
            "correlationid": envelope.correlation_id,
            "causationid": envelope.id,
            "subject": saga_id,
            "partitionkey": saga_id,
        },
        data,
    )
