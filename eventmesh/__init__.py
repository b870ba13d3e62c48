"""Services that own their databases and exchange typed, versioned messages.

The public names are imported when they are first used, so that `import eventmesh` and commands
that do not need them are fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` does at run time, for type checkers
    from fast_depends import Depends as Depends

    from eventmesh.clock import Clock as Clock
    from eventmesh.contracts.message import Command as Command
    from eventmesh.contracts.message import Event as Event
    from eventmesh.errors import EventMeshError as EventMeshError
    from eventmesh.errors import Reject as Reject
    from eventmesh.persistence.transaction import Transaction as Transaction
    from eventmesh.runtime.declaring.retry import Retry as Retry
    from eventmesh.runtime.declaring.retry import constant as constant
    from eventmesh.runtime.declaring.retry import exponential as exponential
    from eventmesh.runtime.declaring.service import Publisher as Publisher
    from eventmesh.runtime.declaring.settings import Settings as Settings
    from eventmesh.runtime.service import Service as Service
    from eventmesh.saga.authoring import Saga as Saga
    from eventmesh.saga.failures import DeadLettered as DeadLettered
    from eventmesh.saga.failures import SagaFailure as SagaFailure
    from eventmesh.saga.failures import TimedOut as TimedOut
    from eventmesh.saga.failures import UndoRequested as UndoRequested
    from eventmesh.wire.envelope import Envelope as Envelope

_HOMES = {
    "Clock": "eventmesh.clock",
    "Command": "eventmesh.contracts.message",
    "DeadLettered": "eventmesh.saga.failures",
    "Depends": "fast_depends",
    "Envelope": "eventmesh.wire.envelope",
    "Event": "eventmesh.contracts.message",
    "EventMeshError": "eventmesh.errors",
    "Publisher": "eventmesh.runtime.declaring.service",
    "Reject": "eventmesh.errors",
    "Retry": "eventmesh.runtime.declaring.retry",
    "Saga": "eventmesh.saga.authoring",
    "SagaFailure": "eventmesh.saga.failures",
    "Service": "eventmesh.runtime.service",
    "Settings": "eventmesh.runtime.declaring.settings",
    "TimedOut": "eventmesh.saga.failures",
    "Transaction": "eventmesh.persistence.transaction",
    "UndoRequested": "eventmesh.saga.failures",
    "constant": "eventmesh.runtime.declaring.retry",
    "exponential": "eventmesh.runtime.declaring.retry",
}


__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eventmesh' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
