"""What a consumer of an ordered subscription holds: of each leased key a run of messages, which are
settled one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import DONE, Dead, Done, Outcome, RetryAfter


class Run:
    """Consecutive messages of one key, `size` of them, under one lease.

    `received` are with the worker, `settled` are done, and `forgotten` are also removed from the
    broker. A message that is done before an earlier one is only remembered: the broker keeps it
    until what is before it is settled. `failed` is what ends the run, because it is to be retried
    or dead.
    """

    __slots__ = (
        "_early",
        "failed",
        "forgotten",
        "is_held",
        "lease",
        "received",
        "settled",
        "size",
        "tag",
    )

    def __init__(self, tag: bytes, lease: int, size: int) -> None:
        self.tag = tag
        self.lease = lease
        self.size = size
        self.received = 0
        self.settled = 0
        self.forgotten = 0
        self.failed: tuple[Delivery, RetryAfter | Dead] | None = None
        self.is_held = True
        """Whether this consumer still has it."""
        self._early: dict[int, tuple[Delivery, Outcome]] | None = None

    @property
    def is_over(self) -> bool:
        return self.failed is not None or self.settled == self.size

    def settle(self, place: int, delivery: Delivery, outcome: Outcome) -> None:
        """Take in an outcome. What comes after a failed one has no effect."""
        if place == self.settled and outcome is DONE and self._early is None:
            self.settled += 1
            return
        early = self._early = self._early or {}
        early.setdefault(place, (delivery, outcome))
        while self.settled in early:
            delivery, outcome = early[self.settled]
            if not isinstance(outcome, Done):
                self.failed = delivery, outcome
                break
            self.settled += 1


class Token(NamedTuple):
    """What identifies a delivery: its run, and its place in it."""

    run: Run
    place: int


class Holdings:
    """All runs of a consumer, and the deliveries in them that the worker has not received.

    A key can have two runs for a moment: Redis has settled one and given out the next before we
    have read its first answer.
    """

    def __init__(self) -> None:
        self._runs: dict[Run, None] = {}
        self._buffer: deque[Delivery] = deque()
        self.unsettled = 0
        """How many messages count towards `prefetch`."""

    @property
    def buffered(self) -> int:
        """How many deliveries wait to be received."""
        return len(self._buffer)

    def has(self, delivery: Delivery) -> bool:
        """Whether a delivery is of a run that is held."""
        return delivery.token.run in self._runs

    def runs(self) -> list[Run]:
        """The latest run of each key."""
        return list({run.tag: run for run in self._runs}.values())

    def add(self, run: Run, deliveries: Sequence[Delivery]) -> None:
        self._runs[run] = None
        self._buffer.extend(deliveries)
        self.unsettled += run.size

    def take(self, limit: int) -> list[Delivery]:
        """The next deliveries, which the worker receives."""
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        for delivery in taken:
            delivery.token.run.received += 1
        return taken

    def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> list[Run]:
        """Take in outcomes; returns the runs that the broker must be told of. Nothing is forgotten
        before `forget`, so that this may be repeated."""
        touched: dict[Run, None] = {}
        for delivery, outcome in settlements:
            run, place = delivery.token
            if run in self._runs:
                run.settle(place, delivery, outcome)
                touched[run] = None
        return list(touched)

    def forget(self, run: Run, settled: int, *, is_over: bool) -> None:
        """The broker knows that so many of this run are settled, and whether it is over."""
        if not run.is_held:
            return  # two tasks have settled it, or it was lost meanwhile
        if is_over:
            self._drop([run])
        elif settled > run.forgotten:
            self.unsettled -= settled - run.forgotten
            run.forgotten = settled

    def keep_only(self, tags: Sequence[bytes]) -> None:
        """Forget all runs but the latest of each of these keys, if it is not settled by now."""
        latest = {run.tag: run for run in self._runs}
        kept = {latest[tag] for tag in tags if tag in latest}
        self._drop([run for run in self._runs if run not in kept])

    def _drop(self, runs: Sequence[Run]) -> None:
        unreceived = False
        for run in runs:
            del self._runs[run]
            run.is_held = False
            self.unsettled -= run.size - run.forgotten
            unreceived |= run.received < run.size
        if unreceived:
            self._buffer = deque(each for each in self._buffer if each.token.run.is_held)
