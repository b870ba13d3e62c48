"""Which saga a dead letter concerns, and what its loss means to it.

A participant's dead letter of a labelled command has been answered by the runtime already (see
`dead_letter_signal`), so its saga has gone on. A dead letter at a saga's own subscription has been
answered by nobody:

| what was dead-lettered    | what its saga does                                                |
|---------------------------|-------------------------------------------------------------------|
| what starts a saga        | there is none yet; replaying it starts one                        |
| an answer                 | waits for it until its time-out                                   |
| the signal of a time-out  | waits forever, unless an operator retries the saga or this signal |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from eventmesh.runtime.consuming.dead_letter_signal import SIGNAL_SUFFIX, is_saga_command
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.coordinator import SUBSCRIPTION_SUFFIX, Coordinator
from eventmesh.saga.record import parse_label
from eventmesh.saga.signals import SagaSignal
from eventmesh.wire.envelope import Envelope

Role = Literal["command", "start", "answer", "time-out"]


@dataclass(frozen=True, slots=True)
class ConcernedSaga:
    """`role` is what the message is to the saga. `id` and `step` are empty where the message does
    not tell."""

    name: str
    id: str
    step: str
    role: Role

    def __str__(self) -> str:
        step = f" (step {self.step})" if self.step else ""
        return f"saga {self.name}" + (f" {self.id}" if self.id else "") + step

    @property
    def is_undo(self) -> bool:
        """Whether it is about the undo of the step."""
        label = parse_label(self.step)
        return label is not None and label.is_undo

    @property
    def command_to_show(self) -> str:
        """What an operator types to see it."""
        service = self.name.partition(".")[0]
        if not self.id:
            return f"eventmesh saga list {service}"
        return f"eventmesh saga show {service} {self.id}"


def concerned_saga(envelope: Envelope, handler: Handler, service: Service) -> ConcernedSaga | None:
    """The saga that a dead letter of this handler of the service concerns, if any."""
    owner = handler.subscription.name.removesuffix(SUBSCRIPTION_SUFFIX)
    sagaid, step = (envelope.attributes.get(each, "") for each in ("sagaid", "sagastep"))
    name, _, saga_id = sagaid.partition("/")
    if is_saga_command(envelope, handler.models):
        return ConcernedSaga(name, saga_id, step, "command")
    coordinator = service.sagas.get(owner)
    if not isinstance(coordinator, Coordinator):
        return None
    if envelope.name == f"{owner}{SIGNAL_SUFFIX}":
        return _signalled(envelope, owner)
    if handler.models.get(envelope.name) in coordinator.definition.starts:
        return ConcernedSaga(owner, "", "", "start")
    if name == owner:
        return ConcernedSaga(owner, saga_id, step, "answer")
    return ConcernedSaga(owner, "", "", "answer")  # it is found by its key, if at all


def _signalled(envelope: Envelope, saga: str) -> ConcernedSaga:
    """The saga to which this signal was sent."""
    try:
        signal = SagaSignal.model_validate_json(envelope.data)
    except ValidationError:
        return ConcernedSaga(saga, "", "", "time-out")
    role: Role = "time-out" if signal.what == "timed_out" else "answer"
    return ConcernedSaga(saga, signal.saga_id, signal.label, role)
