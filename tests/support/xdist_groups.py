"""How tests are shared out among the processes of pytest-xdist (`--dist loadgroup`).

The tests of a file are a group that stays in one process, in their order: they share what their
module has started, and some of them need a server, or a name on it, for themselves. There are two
exceptions. A file that is one long list of parameters is divided by their first two parts:
`[amqp-container-round_trip]` is in the group `amqp-container`. The files of `tests/faults` are one
group, because they share servers that they stop and kill.

A process that is free gets the longest group that is left. Otherwise one of the last groups might
be a long one, for which all other processes would wait.
"""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler.loadscope import LoadScopeScheduling

_DIVIDED = "tests/conformance/test_guarantees.py"
_SERVER = re.compile(r"\[([a-z]+(?:-(?:container|private|given))?)-")
_JOINED = "tests/faults/"

LONGEST_FIRST = (
    "tests/faults/",
    "tests/conformance/test_guarantees.py amqp-container",
    "tests/integration/test_servers.py",
    "tests/integration/test_worker.py",
    "tests/integration/test_database_cuts.py",
    "tests/integration/test_redis_failover.py",
    "tests/conformance/test_guarantees.py amqp-private",
    "tests/integration/test_relays.py",
    "tests/integration/test_amqp_faults.py",
    "tests/crash/test_crash_points.py",
    "tests/acceptance/test_shop.py",
    "tests/integration/test_outbox_cli.py",
    "tests/testing/test_real_servers.py",
    "tests/testing/test_planted_bugs.py",
    "tests/integration/test_inventory.py",
    "tests/integration/test_cli.py",
    "tests/integration/test_faststream.py",
    "tests/integration/test_persistence.py",
    "tests/integration/test_redis_streams.py",
    "tests/integration/test_rabbitmq_management.py",
    "tests/conformance/test_guarantees.py",
    "tests/integration/test_audit.py",
    "tests/integration/test_mariadb.py",
    "tests/integration/test_redis_faults.py",
    "tests/integration/test_join.py",
    "tests/integration/test_probes.py",
    "tests/conformance/test_guarantees.py redis-container",
    "tests/conformance/test_guarantees.py redis-private",
    "tests/testing/test_simulation.py",
    "tests/testing/test_mutants.py",
    "tests/integration/test_docs.py",
    "tests/integration/test_schema_cli.py",
    "tests/integration/test_outbox_races.py",
    "tests/schemas/test_models.py",
    "tests/integration/test_pausing.py",
    "tests/integration/test_sagas.py",
    "tests/conformance/test_guarantees.py sqlite",
    "tests/integration/test_dashboard.py",
    "tests/compat/test_determinism.py",
    "tests/integration/test_saga_versions.py",
    "tests/integration/test_handler_ends.py",
    "tests/integration/test_saga_plans.py",
    "tests/integration/test_why.py",
    "tests/compat/test_properties.py",
    "tests/integration/test_bad_messages.py",
    "tests/compat/test_bad_schemas.py",
    "tests/unit/saga/verify/test_broken_sagas.py",
    "tests/integration/test_forks.py",
    "tests/unit/saga/verify/test_exploration.py",
    "tests/integration/test_broker_cuts.py",
    "tests/integration/test_amqp_worker.py",
)
"""The groups that took longer than ten seconds when they were measured. The others follow in the
order of collection."""

_RANK = {group: rank for rank, group in enumerate(LONGEST_FIRST)}


class GroupScheduling(LoadScopeScheduling):
    """Gives the longest group that is left to whichever process is free."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        if self.config.option.shuffle is None:
            longest = min(self.workqueue, key=lambda group: _RANK.get(group, len(_RANK)))
            self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)


def group_of(nodeid: str) -> str:
    """The group in which a test is run."""
    path, _, name = nodeid.partition("::")
    if path.startswith(_JOINED):
        return _JOINED
    server = _SERVER.search(name) if path == _DIVIDED else None
    return f"{path} {server[1]}" if server else path
