"""Why a saga is undone, where no event of a participant says so.

A step fails when a participant answers with one of its `failed` events. The failures here are
EventMesh's own. Every step may meet them, so the function that announces the undone saga takes them
beside the events: `failure: OutOfStock | PaymentDeclined | SagaFailure`.
"""

from __future__ import annotations

from pydantic import BaseModel


class SagaFailure(BaseModel, frozen=True):
    """A step that no event answered. `reason` is for people."""

    step: str
    reason: str


class TimedOut(SagaFailure, frozen=True):
    """No answer came within the step's time-out. The step may have been done all the same: an
    answer that comes later is undone, too."""


class DeadLettered(SagaFailure, frozen=True):
    """The command was dead-lettered by its participant, which says why in `reason`."""


class UndoRequested(SagaFailure, frozen=True):
    """An operator has asked for the saga to be undone; `reason` is what they gave."""


OWN_FAILURES: tuple[type[SagaFailure], ...] = (TimedOut, DeadLettered, UndoRequested)
"""All of them, without their base."""
