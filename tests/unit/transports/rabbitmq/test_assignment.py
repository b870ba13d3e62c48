"""Partitions are divided evenly among the workers, and few of them move when one comes or goes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.transports.rabbitmq.ordered.assignment import assign


@given(st.sets(st.text(max_size=5), max_size=12), st.integers(1, 40))
def test_every_partition_has_a_worker_and_none_has_two_more_than_another(
    workers: set[str], partitions: int
) -> None:
    assigned = assign(workers, partitions)
    if not workers:
        assert assigned == {}
        return
    assert sorted(assigned) == list(range(partitions))
    counts = Counter(dict.fromkeys(workers, 0) | Counter(assigned.values()))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert assigned == assign(sorted(workers), partitions) == assign(list(workers), partitions)


@pytest.mark.parametrize("partitions", [16, 64])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_few_partitions_move_when_a_worker_comes(workers: int, partitions: int) -> None:
    """The newcomer's share has to move. What moves beside it is about as much, at most twice."""
    moved = needed = 0
    for number in range(30):
        names = [f"worker {number} {each}" for each in range(workers + 1)]
        before, after = assign(names[:-1], partitions), assign(names, partitions)
        moved += sum(before[each] != after[each] for each in before)
        needed += sum(worker == names[-1] for worker in after.values())
    assert needed <= moved <= 3 * needed
