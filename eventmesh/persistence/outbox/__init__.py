"""The outbox: messages that a transaction has committed and the broker has not confirmed yet.

A row is there from the commit until a relay has published it. So the rows themselves say what is to
be done, and no cursor does: a cursor would skip a transaction that takes its row numbers before
another one and commits after it.

Messages of one key are published in the order of their row numbers. When the broker rejects one,
the others of its key wait behind it (and nobody else's do) until it is published, or for ever once
it is parked after too many attempts: head-of-line blocking, within a key. The states of a row:

    inserted ---> ready ---------------------> published (deleted)
          |        ^  |                            ^
          |  due   |  | rejected by the broker     | attempt succeeds
          +-> delayed v                            |
                   rejected <-- retried later -----+
                      |  too many attempts
                      v
                   parked --> retried or skipped by a person
"""

from eventmesh.persistence.outbox.reading import START as START
from eventmesh.persistence.outbox.reading import OutboxRow as OutboxRow
from eventmesh.persistence.outbox.reading import Position as Position
from eventmesh.persistence.outbox.reading import ahead as ahead
from eventmesh.persistence.outbox.reading import due as due
from eventmesh.persistence.outbox.reading import has_rejected as has_rejected
from eventmesh.persistence.outbox.reading import next_due as next_due
from eventmesh.persistence.outbox.reading import writers as writers
from eventmesh.persistence.outbox.settling import Rejection as Rejection
from eventmesh.persistence.outbox.settling import delete_confirmed as delete_confirmed
from eventmesh.persistence.outbox.settling import delete_untried as delete_untried
from eventmesh.persistence.outbox.settling import mark_rejected as mark_rejected
from eventmesh.persistence.outbox.statistics import OutboxLot as OutboxLot
from eventmesh.persistence.outbox.statistics import OutboxStats as OutboxStats
from eventmesh.persistence.outbox.statistics import census as census
from eventmesh.persistence.outbox.statistics import count_parked as count_parked
from eventmesh.persistence.outbox.statistics import oldest as oldest
from eventmesh.persistence.outbox.statistics import stats as stats
from eventmesh.persistence.outbox.writing import Outgoing as Outgoing
from eventmesh.persistence.outbox.writing import Stored as Stored
from eventmesh.persistence.outbox.writing import bucket_of as bucket_of
from eventmesh.persistence.outbox.writing import store as store
