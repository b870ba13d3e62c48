"""A broker in memory that behaves as badly as brokers may."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, PublishInterrupted, Unreachable
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope


@dataclass
class Broker:
    """How it behaves, and what it has taken."""

    whole: bool = True
    """Whether it stores a batch in one step."""
    refuses: Counter[str] = field(default_factory=Counter)
    """How many more messages it will refuse of a key."""
    lost_after: int | None = None
    """After how many messages of the next batch it is lost."""
    tells: bool = False
    """Whether it tells, when it is lost, of those that it has."""
    sent: list[Envelope] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What those who publish did that they must not."""


class Wire(MemoryTransport):
    """A relay's way to it; the relay can be stopped on the way there and back."""

    def __init__(
        self,
        clock: Clock,
        memory: MemoryTransport,
        behaves: Broker,
        may: Callable[[Envelope], bool],
    ) -> None:
        """`may` says whether a message is at this moment this relay's to publish."""
        super().__init__(clock, memory.broker)
        self.atomic_batches = behaves.whole  # type: ignore[misc]
        self._behaves = behaves
        self._may = may

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        behaves = self._behaves
        behaves.broken += [f"{each.id} is another's" for each in envelopes if not self._may(each)]
        await asyncio.sleep(0)
        refused = self._refused(envelopes)
        taken = [each for each in envelopes if each.id not in refused]
        if behaves.lost_after is not None:
            await self._lose(taken, behaves.lost_after)
        await self._store(taken)
        if refused:
            raise PublishError(refused)

    async def _lose(self, taken: Sequence[Envelope], after: int) -> None:
        behaves = self._behaves
        behaves.lost_after = None
        stored = taken[:after]
        if behaves.whole and len(stored) < len(taken):
            stored = []
        await self._store(stored)
        if behaves.tells:
            raise PublishInterrupted("lost", frozenset(each.id for each in stored))
        raise Unreachable("lost")

    async def _store(self, envelopes: Sequence[Envelope]) -> None:
        for part in [envelopes] if self.atomic_batches else [[each] for each in envelopes]:
            await super().publish(part)
            self._behaves.sent.extend(part)
            await asyncio.sleep(0)

    def _refused(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        """Those it refuses of these, with the reasons; what comes after one in a batch that is
        stored in one step, and has its key, is left out, too."""
        refuses, refused = self._behaves.refuses, dict[str, str]()
        held: set[str | None] = set()
        for each in envelopes:
            if self.atomic_batches and each.key in held:
                refused[each.id] = "held back"
            elif each.key is not None and refuses[each.key] > 0:
                refuses[each.key] -= 1
                refused[each.id] = "refused"
                held.add(each.key)
        return refused
