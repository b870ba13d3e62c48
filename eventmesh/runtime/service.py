"""The service as users write it: what it declares, and a relay for programs that are not workers.

What it declares is in its base class, DeclaredService, which start-up, relays and workers import.
`relay()` itself needs start-up, so it cannot be there.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from eventmesh.runtime import joining
from eventmesh.runtime.declaring.service import DeclaredService


class Service(DeclaredService):
    """Declares who subscribes to what and who publishes what; `eventmesh worker` runs it.

    `metadata` holds the service's own SQLAlchemy tables, made where they are missing by
    `eventmesh db upgrade`; a worker does not start while the database lacks one of their columns.
    `shares_database_with` names the services that may use the same database; `eventmesh schema
    check` wants them to name this one too. UsageError for a name that cannot be the first part of a
    message's name.

    Messages of one key are published in the order in which they were written to the outbox, which
    happens at the end of their transactions. If two transactions write messages of one key at the
    same moment, and nothing else makes one wait for the other (such as a row that both update),
    this may differ from the order of their commits. With `ordered_outbox`, on PostgreSQL, one
    waits until the other has committed.
    """

    def relay(self) -> AbstractAsyncContextManager[None]:
        """Relay the service's outbox while the context is open, as for the lifespan of a web
        application: `async with service.relay(): ...`.

        A broker that is away is waited for. Any other error of the relay is logged, and the relay
        is tried again: the program around it serves on. Any number of processes may relay, beside
        workers of the service or instead of them. On leaving, what is left in the outbox is
        relayed, for a lease time at the most, and the service is closed. Raises Unreachable, Drift
        or UsageError as a worker does at its start, but not for a broker that does not answer.
        """
        return joining.relaying(self)
