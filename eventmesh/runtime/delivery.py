"""From a delivery to the message a handler takes: a pure function, whose other answer is Dead."""

from __future__ import annotations

from collections.abc import Mapping

from eventmesh.contracts.message import Message
from eventmesh.contracts.upcast import unknown
from eventmesh.errors import UnreadableMessage
from eventmesh.runtime.reading import Undecided
from eventmesh.runtime.retry import describe, printable
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import Judge, check_envelope, open_envelope


def read(
    delivery: Delivery,
    models: Mapping[str, type[Message]],
    max_deliveries: float,
    judge: Judge = unknown,
) -> Message | Dead:
    """The validated message of the model's version, or why it can never be handled. Undecided when
    `judge` does not know it yet."""
    if delivery.deliveries > max_deliveries:
        return Dead(
            f"handed to workers {delivery.deliveries - 1} times without any of them settling it: "
            f"its handler may be killing its worker"
        )
    try:
        check_envelope(delivery.envelope)
        model = models.get(delivery.envelope.name)
        if model is None:
            raise UnreadableMessage(
                f"this subscription takes {', '.join(models)}, and not {delivery.envelope.name!r}"
            )
        return open_envelope(delivery.envelope, model, judge)
    except Undecided:
        raise
    except UnreadableMessage as error:
        return Dead(printable(str(error)))
    except Exception as error:  # noqa: BLE001  # a user's validator may raise anything
        return Dead(printable(f"the message could not be read: {error!r}"), describe(error))
