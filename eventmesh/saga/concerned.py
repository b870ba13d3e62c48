"""Which saga a dead letter concerns, and what its loss means to it.

A participant's dead letter of a labelled command has been answered by the runtime already (see
`dead_letter_signal`), so its saga has gone on. A dead letter at a saga's own subscription has been
answered by nobody: whatever waits for it waits until its time-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json

from eventmesh.runtime.consuming.dead_letter_signal import SIGNAL_SUFFIX, is_saga_command
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.saga.coordinator import SUBSCRIPTION_SUFFIX
from eventmesh.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class ConcernedSaga:
    """`role` is what the message is to the saga: a command that it has sent, or something that it
    has not received. `id` and `step` are empty where the message does not tell."""

    name: str
    id: str
    step: str
    role: Literal["sent", "not received"]

    def __str__(self) -> str:
        step = f" (step {self.step})" if self.step else ""
        return f"saga {self.name}" + (f" {self.id}" if self.id else "") + step

    @property
    def command_to_show(self) -> str:
        """What an operator types to see it."""
        service = self.name.partition(".")[0]
        if not self.id:
            return f"eventmesh saga list {service}"
        return f"eventmesh saga show {service} {self.id}"


def concerned_saga(envelope: Envelope, handler: Handler) -> ConcernedSaga | None:
    """The saga that a dead letter of this handler concerns, if any."""
    owner = handler.subscription.name.removesuffix(SUBSCRIPTION_SUFFIX)
    sagaid, step = (envelope.attributes.get(each, "") for each in ("sagaid", "sagastep"))
    name, _, saga_id = sagaid.partition("/")
    if is_saga_command(envelope, handler.models):
        return ConcernedSaga(name, saga_id, step, "sent")
    if f"{owner}{SIGNAL_SUFFIX}" not in handler.models:
        return None
    if envelope.name == f"{owner}{SIGNAL_SUFFIX}":
        saga_id, step = _signalled(envelope)
        return ConcernedSaga(owner, saga_id, step, "not received")
    if name == owner:
        return ConcernedSaga(owner, saga_id, step, "not received")
    return ConcernedSaga(owner, "", "", "not received")


def _signalled(envelope: Envelope) -> tuple[str, str]:
    """The id and the label in a saga's signal; empty where it cannot be read."""
    try:
        data: Any = from_json(envelope.data)
        return str(data["saga_id"]), str(data["label"])
    except (ValueError, TypeError, KeyError):
        return "", ""
