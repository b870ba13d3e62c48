"""The service as users write it: what it declares, and a relay for programs that are no worker.

What hosts run is declared one floor below them, in `declaring`, and `relay()` is itself a host.
So the class has two parts, and this is the upper one.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from eventmesh.runtime import joining
from eventmesh.runtime.declaring import service as declaring


class Service(declaring.Service):
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
        """For the lifespan of a web application: `async with service.relay():` publishes to the
        broker what is committed meanwhile, and waits for a broker that is away. Any number of
        processes may do so, beside workers of the service or instead of them; on leaving, what is
        left is relayed for a short time, and the service is closed.

        Raises Unreachable, Drift or UsageError as a worker does at its start, except for a broker
        that does not answer.
        """
        return joining.relaying(self)
