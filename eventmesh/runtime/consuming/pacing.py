"""How many messages to take next, so that a transaction ends within its time.

Messages that share a transaction share its commit, so large groups are fast; but a transaction that
is open for long keeps its locks for long. The size follows what was measured: a full batch that was
fast doubles it, a slow one shrinks it, and a failure sets it back to 1. An example with at most 100
messages and 50 ms a group, and a handler that takes 2 ms for a message:

    taken    1     2     4     8    16    25    25 …
    took     2     4     8    16    32    50    50 ms
"""

from __future__ import annotations


def next_size(size: int, taken: int, took: float, most: int, time: float) -> int:
    """How many messages to take after a batch of `taken` without a failure, which took `took` of
    the `time` that a group may take, both in seconds.

    As many as fit into the time, but at least half of `size` and at most its double; and more than
    `size` only if the batch was full, since one that was not says nothing about larger ones.
    """
    fitting = int(min(taken * time / took, most)) if took else most
    if took > time:
        return max(min(fitting, size), size // 2, 1)
    if taken >= size:
        return min(max(fitting, size), size * 2, most)
    return size
