"""From a delivery to the message that a handler takes.

Reading checks the envelope, its source and its version, upcasts the data and validates it. Whatever
can never be read, such as garbage bytes or an unknown version, is Dead at once, with a reason for
people: trying again would not help. This is a pure function, apart from the question whether an
unknown version can be read, which `readings` answers from the frozen schemas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eventmesh.contracts.message import Message
from eventmesh.contracts.versions import describe_unreadable_version
from eventmesh.error_text import message_of
from eventmesh.errors import UnreadableMessage
from eventmesh.runtime.consuming.poison import poison_reason
from eventmesh.runtime.declaring.reading import Undecided
from eventmesh.runtime.declaring.retry import describe, summarize
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import (
    MAX_ATTRIBUTE_BYTES,
    Envelope,
    Judge,
    check_envelope,
    open_envelope,
)


def read(
    delivery: Delivery,
    models: Mapping[str, type[Message]],
    max_deliveries: float,
    judge: Judge = describe_unreadable_version,
    sources: Sequence[str] = (),
) -> Message | Dead:
    """The validated message in the model's version, or Dead with the reason why it cannot be one.
    `sources` may publish events besides their owner. Undecided when `judge` does not know yet."""
    if delivery.unreadable:
        return Dead(f"this is not a valid EventMesh message: {delivery.unreadable}")
    if delivery.deliveries > max_deliveries:
        return Dead(poison_reason(delivery))
    try:
        check_envelope(delivery.envelope)
        model = models.get(delivery.envelope.name)
        if model is None:
            raise UnreadableMessage(
                f"this subscription takes {', '.join(models)}, and not {delivery.envelope.name!r}"
            )
        check_source(delivery.envelope, model, sources)
        return open_envelope(delivery.envelope, model, judge)
    except Undecided:
        raise
    except UnreadableMessage as error:
        return Dead(message_of(error))
    except Exception as error:  # noqa: BLE001  # a user's validator may raise anything
        return Dead(f"the message could not be read: {summarize(error)}", describe(error))


def check_source(envelope: Envelope, model: type[Message], sources: Sequence[str] = ()) -> None:
    """UnreadableMessage for an event that comes neither from its owner nor from one of `sources`.

    Events of the service `payments` have the source `/payments`, or one below it, such as
    `/payments/eu`. An entry of `sources` is a source, or a prefix followed by `*`. Anybody may send
    a command.
    """
    identity = model.__identity__
    if identity.kind == "command":
        return
    source, owners = envelope.attributes["source"], f"/{identity.owner}"
    if source == owners or source.startswith(f"{owners}/"):
        return
    for accepted in sources:
        if source == accepted or (accepted.endswith("*") and source.startswith(accepted[:-1])):
            return
    if len(source) > MAX_ATTRIBUTE_BYTES:
        source = f"{source[:MAX_ATTRIBUTE_BYTES]}…"
    raise UnreadableMessage(
        f"the event {identity.name} comes from the source {source!r}, and belongs to the service "
        f"{identity.owner}, whose events have the source {owners!r}. If it may be published from "
        f"there, as by a bridge or a program in another language, name that source where the event "
        f"is subscribed to, with sources=[{source!r}], and replay this dead letter."
    )
