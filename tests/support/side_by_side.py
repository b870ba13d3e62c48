"""How tests are shared out among the processes of pytest-xdist (`--dist loadgroup`).

The tests of a file stay in one process, in their order: they share what their module has started,
and some of them need a server, or a name on it, for themselves. A file that is one long list of
parameters is shared out by its first two parts: `[amqp-container-round_trip]` is in the group
`amqp-container`.
"""

from __future__ import annotations

import re

from xdist.scheduler.loadscope import LoadScopeScheduling

_DIVIDED = "tests/conformance/test_guarantees.py"
_SERVER = re.compile(r"\[([a-z]+(?:-(?:container|private|given))?)-")


class GroupScheduling(LoadScopeScheduling):
    """Gives the next group to whichever process is free, in the order of collection: the long ones
    are in the folders that come first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """The group in which a test is run."""
    path, _, name = nodeid.partition("::")
    server = _SERVER.search(name) if path == _DIVIDED else None
    return f"{path} {server[1]}" if server else path
