"""Which worker consumes which partitions of a subscription.

Every worker computes this for itself, so it depends on nothing but who the workers are. Each pair
of a worker and a partition has a weight, a hash of both. The pairs are taken by their weights, the
greatest first, and a pair counts if its partition is free and its worker has room. Weights do not
change when a worker comes or goes, so most partitions stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection


def assign(workers: Collection[str], partitions: int) -> dict[int, str]:
    """The worker of each partition. Of two workers, neither has more than one partition more than
    the other. Empty without workers."""
    if not workers:
        return {}
    fewest, with_one_more = divmod(partitions, len(workers))
    pairs = sorted(
        (
            (_weight(worker, number), worker, number)
            for worker in workers
            for number in range(partitions)
        ),
        reverse=True,
    )
    assigned: dict[int, str] = {}
    numbers = dict.fromkeys(workers, 0)
    for _, worker, number in pairs:
        has = numbers[worker]
        if number in assigned or has > fewest or (has == fewest and not with_one_more):
            continue
        assigned[number] = worker
        numbers[worker] = has + 1
        with_one_more -= has == fewest
    return assigned


def _weight(worker: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{partition} {worker}".encode(), digest_size=8).digest()
