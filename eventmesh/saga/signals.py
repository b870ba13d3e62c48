"""What EventMesh itself tells a saga: that a time-out has passed, or a command was dead-lettered.

Each saga has one command of its own for this, `<saga>.signal`, which its coordinator handles. It is
a message like any other (it waits in the outbox until a time-out is due, goes through the broker
and the inbox), but no service declares it and no schema of it is frozen: EventMesh owns it.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from eventmesh.contracts.message import Command
from eventmesh.runtime.consuming.dead_letter_signal import SIGNAL_SUFFIX
from eventmesh.wire.envelope import MAX_ATTRIBUTE_BYTES


class SagaSignal(Command):
    """`label` is that of the command which was not answered; `reason` says why a participant has
    dead-lettered it."""

    saga_id: str
    label: str
    what: Literal["timed_out", "dead_lettered"]
    reason: str = ""


def signal_of(saga: str) -> type[SagaSignal]:
    """The command by which this saga is told; with the saga's id as its key."""

    class Signal(SagaSignal, name=f"{saga}{SIGNAL_SUFFIX}", version=1, key="saga_id"):
        __is_internal__ = True

    return Signal


def timer_id(saga: str, saga_id: str, label: str) -> str:
    """The id of the signal that says this label has timed out, by which it can be cancelled."""
    return _fitting(f"{saga}/{saga_id}/{label}")


def delayed_id(saga: str, saga_id: str, label: str) -> str:
    """The id of the delayed command with this label, by which it can be withdrawn. No other command
    has it: each attempt has a label of its own."""
    return _fitting(f"{saga}/{saga_id}/{label}/command")


def _fitting(written: str) -> str:
    if len(written) <= MAX_ATTRIBUTE_BYTES:  # all of it is ASCII
        return written
    return "sha256:" + hashlib.sha256(written.encode()).hexdigest()
