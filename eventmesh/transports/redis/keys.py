"""The names of the keys in Redis.

What is under a prefix lies in one slot of a Redis Cluster, or is spread over several, in as many
parts. Each part has a prefix of its own, and under it the same names. For example, the prefix
`eventmesh` in three slots:

| part | its prefix on a Cluster | holds                                                     |
|------|-------------------------|-----------------------------------------------------------|
| 0    | `{eventmesh}`           | a third of the keys, messages without a key, and `layout` |
| 1    | `{eventmesh.1.13}`      | a third of the keys                                       |
| 2    | `{eventmesh.2.3}`       | a third of the keys                                       |

A key belongs to the same part forever, so whatever is promised of a key is kept inside of its part.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from eventmesh.transports.base import Subscription
from eventmesh.wire.envelope import part_of

MOST_SLOTS = 64
"""The most slots that a prefix may be spread over."""

SLOTS_OF_A_CLUSTER = 16_384


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one subscription. `streams` are all streams that it reads, the retry stream
    last."""

    group: str
    streams: tuple[str, ...]
    retry: str
    delayed: str
    dead: str
    ordering: tuple[str, ...]
    """What an ordered subscription needs besides, as the scripts in `scripts.ordering` expect it:
    order, mail, ready, held, consumers, leases, holding, wake, dead, retry, delayed, group."""

    @property
    def order(self) -> str:
        """The hash that exists if the subscription is ordered."""
        return self.ordering[0]

    @property
    def wake(self) -> str:
        """The stream that wakes consumers of an ordered subscription."""
        return self.ordering[7]

    @property
    def ordered(self) -> tuple[str, ...]:
        """The KEYS of the scripts for ordered subscriptions."""
        return (*self.ordering, *self.streams)


class Layout:
    """The keys under a prefix.

    With `one_slot`, the prefix is a hash tag: a Redis Cluster then keeps all keys on one node, so
    that scripts and transactions can use several of them.
    """

    def __init__(self, prefix: str, *, one_slot: bool) -> None:
        self._prefix = f"{{{prefix}}}" if one_slot else prefix

    def stream(self, message: str) -> str:
        """The stream of a message."""
        return f"{self._prefix}:stream:{message}"

    @property
    def record(self) -> str:
        """The hash that says over how many slots the prefix is spread; of the first part only."""
        return f"{self._prefix}:layout"

    @property
    def streams(self) -> str:
        """The start of the names of all messages' streams."""
        return self.stream("")

    def of(self, subscription: Subscription) -> Keys:
        name = subscription.name
        retry = f"{self._prefix}:retry:{name}"
        delayed = f"{self._prefix}:delayed:{name}"
        dead = f"{self._prefix}:dead:{name}"
        own = ("order", "mail", "ready", "held", "consumers", "leases", "holding", "wake")
        return Keys(
            group=name,
            streams=(*(self.stream(message) for message in subscription.messages), retry),
            retry=retry,
            delayed=delayed,
            dead=dead,
            ordering=(*(f"{self._prefix}:{each}:{name}" for each in own), dead, retry, delayed),
        )


def layouts(prefix: str, slots: int, *, one_slot: bool) -> tuple[Layout, ...]:
    """The layouts of all parts of a prefix that is spread over so many slots."""
    return tuple(Layout(each, one_slot=one_slot) for each in part_prefixes(prefix, slots))


@lru_cache(maxsize=64)
def part_prefixes(prefix: str, slots: int) -> Sequence[str]:
    """The prefix of each part. The first is the prefix itself.

    The slots of a Cluster are divided into as many ranges as there are parts, and each part's slot
    is well inside a range of its own. Masters that have equally many slots, next to each other,
    then have equally many parts. A name is numbered until its slot is in the right range.
    """
    first_range = slot_of(prefix) * slots // SLOTS_OF_A_CLUSTER
    return (
        prefix,
        *(
            _prefix_in(f"{prefix}.{part}", (first_range + part) % slots, slots)
            for part in range(1, slots)
        ),
    )


def _prefix_in(name: str, range_: int, slots: int) -> str:
    """The first numbered name whose slot is in the middle half of this range."""
    for number in count(1):
        numbered = f"{name}.{number}"
        range_of_slot, quarter = divmod(slot_of(numbered) * 4 * slots // SLOTS_OF_A_CLUSTER, 4)
        if range_of_slot == range_ and quarter in (1, 2):
            return numbered
    raise AssertionError("unreachable: some number fits")


def slot_of(tag: str) -> int:
    """The slot of a Redis Cluster to which keys with this hash tag belong."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS_OF_A_CLUSTER


def part_of_key(key: str | None, slots: int) -> int:
    """The number of the part to which messages with this key belong. Those without a key are all in
    the first, because an ordered subscription promises order among them."""
    return 0 if key is None else part_of(key, "", slots)
