"""What must hold before a service's first message, whichever program hosts it: a worker, a web
application that relays, or a FastStream app."""

from __future__ import annotations

from eventmesh.contracts.locks.drift import refuse_drift
from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.purger import check_window


def check_before_start(service: Service, settings: Settings) -> None:
    """Drift where a message differs from its frozen schema; UsageError where the inbox would forget
    a message while a copy of it may still come, for every host purges the inbox."""
    refuse_drift(service.registry.owned(), settings.schemas)
    if service.needs_database:
        check_window(service.handlers.values(), settings)
