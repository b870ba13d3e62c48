"""An in-memory broker that rejects messages, disconnects, and splits batches on demand. The testing
kit's broker loses connections, too, but rejects no message and stores each batch completely."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import PublishResult
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope


@dataclass
class FaultyBroker:
    """Which faults it shows, and what it has stored."""

    atomic_batches: bool = True
    """Whether it stores a batch completely or not at all."""
    rejects: Counter[str] = field(default_factory=Counter)
    """How many more messages of each key it will reject."""
    lost_after: int | None = None
    """After how many messages of the next batch the connection is lost; None: it is not."""
    confirms_before_loss: bool = False
    """Whether the error for a lost connection names the messages that were stored."""
    sent: list[Envelope] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    """What publishers did although they must not."""


class FaultyTransport(MemoryTransport):
    """One relay's connection to the broker; the relay can be killed before and after a store."""

    def __init__(
        self,
        clock: Clock,
        memory: MemoryTransport,
        broker: FaultyBroker,
        may: Callable[[Envelope], bool],
    ) -> None:
        """`may` says whether this relay may publish a message at this moment."""
        super().__init__(clock, memory.broker)
        self.atomic_batches = broker.atomic_batches  # type: ignore[misc]
        self._faults = broker
        self._may = may

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        broker = self._faults
        broker.violations += [
            f"{each.id} is leased by another relay" for each in envelopes if not self._may(each)
        ]
        await asyncio.sleep(0)
        rejected = self._rejected(envelopes)
        accepted = [each for each in envelopes if each.id not in rejected]
        if broker.lost_after is not None:
            stored = await self._lose(accepted, broker.lost_after)
            confirmed = stored if broker.confirms_before_loss else set()
            unconfirmed = [each for each in envelopes if each.id not in confirmed]
            return PublishResult.interrupted(unconfirmed, Unreachable("lost"))
        await self._store(accepted)
        return PublishResult(rejected)

    async def _lose(self, accepted: Sequence[Envelope], after: int) -> set[str]:
        """Store only so many of these; returns their ids."""
        broker = self._faults
        broker.lost_after = None
        stored = accepted[:after]
        if broker.atomic_batches and len(stored) < len(accepted):
            stored = []
        await self._store(stored)
        return {each.id for each in stored}

    async def _store(self, envelopes: Sequence[Envelope]) -> None:
        for part in [envelopes] if self.atomic_batches else [[each] for each in envelopes]:
            await super().publish(part)
            self._faults.sent.extend(part)
            await asyncio.sleep(0)

    def _rejected(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        """The rejected messages with reasons; in an atomic batch, later messages of the same key
        are left out as well."""
        rejects, rejected = self._faults.rejects, dict[str, str]()
        held: set[str | None] = set()
        for each in envelopes:
            if self.atomic_batches and each.key in held:
                rejected[each.id] = "held back"
            elif each.key is not None and rejects[each.key] > 0:
                rejects[each.key] -= 1
                rejected[each.id] = "refused"
                held.add(each.key)
        return rejected
