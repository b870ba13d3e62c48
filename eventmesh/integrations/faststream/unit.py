"""What FastStream's context holds while a handler runs in one of our transactions."""

from __future__ import annotations

from dataclasses import dataclass

from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.transaction import Transaction
from eventmesh.wire.envelope import Envelope

UNIT = "eventmesh"
"""Its name in FastStream's context."""


@dataclass(slots=True)
class Unit:
    """One message's unit of work. It is `open` until the handler has returned: what a task that the
    handler left behind publishes afterwards cannot be part of it any more."""

    transaction: Transaction
    envelope: Envelope
    open: bool = True

    @property
    def session(self) -> AsyncSession:
        return self.transaction.session
