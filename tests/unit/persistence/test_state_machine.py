"""Outbox, relays and inbox against a model, under random faults (a state machine of Hypothesis).

Two relays of one service run in the virtual world of the testing kit, on a SQLite file and a broker
in memory. Transactions commit or fail. A relay is killed at any of its
steps, or paused until other relays have acquired its leases. The broker rejects messages, is lost
in the middle of a batch, or redelivers. Parked messages are retried or skipped, and old rows are
purged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Service, Settings, Transaction
from eventmesh.persistence import purge
from eventmesh.persistence.outbox import parked
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.relaying import relay as relay_module
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.testing.virtual.clock import Ids, VirtualClock
from eventmesh.testing.virtual.loop import VirtualLoop
from eventmesh.testing.virtual.sqlite import KeptConnections, on_the_loop
from eventmesh.transports.memory import MemoryTransport
from tests.crash.faulty_broker import FaultyBroker
from tests.crash.killable_relay import LEASE_TIME, KillableRelay, query, shut_down_all, start

T = TypeVar("T")

KEYS = ("a", "b", "c")
DELAY = 1.5
WINDOW = 20.0
"""Seconds after which rows of the inbox are purged: longer than any step here takes."""

PARK_AFTER = 3
"""Rejections after which a message is parked: fewer than in production, so that it happens."""

SETTLED_AFTER = 15.0
"""Seconds within which everything that can be published has been."""

STEPS = st.integers(1, 30)
"""The step of a relay at which a fault happens; a batch takes fewer steps than the maximum."""

SOME_KEYS = st.lists(st.sampled_from(KEYS), max_size=6)
"""The keys of messages that are committed right before a fault, so that it affects them."""


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """The effect of a message, which only the inbox keeps from happening twice."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Noted(Event, name="shop.noted", version=1, key="key"):
    key: str
    number: int


class OutboxAndInbox(RuleBasedStateMachine):
    """The model is the list of committed messages, in their order."""

    template: Path

    # State

    @initialize(whole=st.booleans())
    def begin(self, whole: bool) -> None:
        random.seed(0)
        self.folder = tempfile.mkdtemp()
        self.file = f"{self.folder}/shop.db"
        shutil.copy(self.template, self.file)
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.clock = VirtualClock(self.loop, Ids())
        self.broker = FaultyBroker(whole)
        self.memory = MemoryTransport(self.clock)
        self.committed: list[Noted] = []
        self.delayed: set[int] = set()
        self.skipped: set[int] = set()
        self.ever_rejected: set[str] = set()
        self.numbers = iter(range(1, 10_000))
        self.service = make_service(self.clock, self.file)
        [self.handler] = self.service.handlers.values()
        self.runner = self.do(self._runner())
        self.started: list[KillableRelay] = []
        self.relays = [self.start_relay(), self.start_relay()]

    async def _runner(self) -> BatchRunner:
        await self.memory.declare([self.handler.subscription])
        vitals = SubscriptionVitals("shop", self.handler.subscription, self.clock)
        return BatchRunner(self.service, self.handler, vitals)

    def start_relay(self) -> KillableRelay:
        running = start(self.file, self.clock, self.memory, self.broker)
        self.started.append(running)
        return running

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        self.loop.progressed()
        return self.loop.run_until_complete(work)

    # Rules

    @rule(keys=SOME_KEYS, delayed=st.booleans(), good=st.sampled_from((True, True, False)))
    def commit(self, keys: list[str], delayed: bool, good: bool) -> None:
        self.do(self._commit(keys, delayed=delayed, good=good))

    async def _commit(self, keys: list[str], *, delayed: bool = False, good: bool = True) -> None:
        """Commit messages with these keys; with `delayed`, the last one is delayed."""
        messages = [Noted(key=key, number=next(self.numbers)) for key in keys]
        late = messages[-1:] if delayed else []
        try:
            async with self.service.transaction() as tx:
                for each in messages:
                    tx.publish(each, delay=DELAY if each in late else 0)
                if not good:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        self.committed += messages
        self.delayed |= {each.number for each in late}

    @rule(seconds=st.sampled_from((0.01, 0.1, 0.5, 2.0, LEASE_TIME)))
    def let_time_pass(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @rule(which=st.integers(0, 1), steps=STEPS, keys=SOME_KEYS)
    def kill_a_relay(self, which: int, steps: int, keys: list[str]) -> None:
        self.do(self._commit(keys))
        self.do(self.relays[which].kill(steps))
        self.relays[which] = self.start_relay()

    @rule(which=st.integers(0, 1), steps=STEPS, keys=SOME_KEYS)
    def pause_a_relay(self, which: int, steps: int, keys: list[str]) -> None:
        self.do(self._commit(keys))
        if not self.relays[which].run.is_paused:
            self.do(self.relays[which].pause(steps))

    @rule()
    def resume_all_relays(self) -> None:
        self.do(self._resume_all_relays())

    async def _resume_all_relays(self) -> None:
        for each in self.relays:
            each.run.resume()

    @rule(after=st.integers(0, 4), confirms=st.booleans(), keys=SOME_KEYS)
    def lose_the_broker_in_the_next_batch(
        self, after: int, confirms: bool, keys: list[str]
    ) -> None:
        self.do(self._commit(keys))
        self.broker.lost_after, self.broker.confirms_before_loss = after, confirms

    @rule(key=st.sampled_from(KEYS), times=st.integers(1, 2 * PARK_AFTER), keys=SOME_KEYS)
    def reject_the_next_messages_of_a_key(self, key: str, times: int, keys: list[str]) -> None:
        self.do(self._commit([*keys, key, key]))
        self.broker.rejects[key] = times
        self.ever_rejected.add(key)

    @rule()
    def stop_rejecting(self) -> None:
        self.broker.rejects.clear()

    @precondition(lambda self: self.parked())
    @rule(retry=st.booleans())
    def retry_or_skip_parked(self, retry: bool) -> None:
        self.do(self._retry_or_skip_parked(retry=retry))

    async def _retry_or_skip_parked(self, *, retry: bool) -> None:
        database = await self.service.database()
        async with database.connection() as connection:
            if retry:
                await parked.retry(connection, self.clock.now())
                return
            rows = query(self.file, "SELECT seq, data FROM eventmesh_outbox WHERE parked")
            skipped = await parked.skip(connection, [seq for seq, _ in rows])
            self.skipped |= {json.loads(data)["number"] for seq, data in rows if seq in skipped}

    @rule(limit=st.integers(1, 5), settled=st.booleans())
    def deliver(self, limit: int, settled: bool) -> None:
        self.do(self._deliver(limit, settled=settled))

    async def _deliver(self, limit: int, *, settled: bool) -> bool:
        """Deliver ready messages and settle them, or lose the worker before settling."""
        subscription = self.handler.subscription
        if not (await self.memory.stats(subscription)).ready:
            return False
        async with self.memory.consume(subscription, prefetch=limit) as consumer:
            settlements = await self.runner.run(await consumer.receive(limit))
            if settled:
                await consumer.settle(settlements)
        return True

    @precondition(lambda self: self.broker.sent)
    @rule(choice=st.randoms(use_true_random=False))
    def publish_a_duplicate(self, choice: random.Random) -> None:
        self.do(self.memory.publish([choice.choice(self.broker.sent)]))

    @precondition(lambda self: self.broker.sent)
    @rule()
    def purge_the_inbox_after_its_window(self) -> None:
        self.settle_all()
        self.broker.sent.clear()  # the broker does not redeliver messages that old
        self.loop.jump(self.loop.now + WINDOW + 1)  # nothing runs meanwhile
        self.do(self._purge())

    async def _purge(self) -> None:
        database = await self.service.database()
        async with database.connection() as connection:
            before = self.clock.now() - timedelta(seconds=WINDOW)
            await purge.purge(connection, purge.RECEIVED, before, 1)

    # Invariants

    @invariant()
    def every_effect_was_committed_and_happened_once_in_order(self) -> None:
        if not hasattr(self, "file"):
            return
        assert not self.broker.violations
        times = Counter(self.effects())
        assert not [number for number, count in times.items() if count > 1]
        committed = {each.number for each in self.committed}
        assert set(times) <= committed
        assert {json.loads(each.data)["number"] for each in self.broker.sent} <= committed
        for key in KEYS:
            effects = [number for number in times if number in set(self.of(key))]
            assert effects == self.of(key)[: len(effects)]

    def of(self, key: str) -> list[int]:
        """The numbers of a key's messages, in the order of their commits. Not delayed ones, which
        have their own time, nor skipped ones, which may have taken effect before their rejection.
        """
        return [
            each.number
            for each in self.committed
            if each.key == key and each.number not in self.delayed | self.skipped
        ]

    def effects(self) -> list[int]:
        return [number for (number,) in query(self.file, "SELECT number FROM effects ORDER BY id")]

    def settle_all(self) -> None:
        """Let time pass until everything is settled: no message is lost, and a parked key blocks no
        other key.
        """
        self.broker.lost_after = None
        self.broker.rejects.clear()
        self.resume_all_relays()
        until = self.loop.time() + SETTLED_AFTER
        # Sleep first: a relay that was just resumed may free a parked key and its later messages.
        self.do(asyncio.sleep(0.5))
        while set(self.waiting()) - self.parked() and self.loop.time() < until:
            self.do(asyncio.sleep(0.5))
        while self.do(self._deliver(100, settled=True)):
            pass
        assert self.parked() <= self.ever_rejected
        assert set(self.waiting()) <= self.parked()
        done = set(self.effects()) | self.skipped
        lost = [each for each in self.committed if each.number not in done]
        # The broker may have stored a message, and rejected it when it was published once more.
        assert Counter(each.key for each in lost) <= self.waiting()
        self.every_effect_was_committed_and_happened_once_in_order()

    def waiting(self) -> Counter[str]:
        """How many messages of each key are in the outbox."""
        return Counter(key for (key,) in query(self.file, "SELECT key FROM eventmesh_outbox"))

    def parked(self) -> set[str]:
        rows = query(self.file, "SELECT key FROM eventmesh_outbox WHERE parked")
        return {key for (key,) in rows}

    def teardown(self) -> None:
        if not hasattr(self, "file"):
            return
        try:
            self.settle_all()
        finally:
            self.do(shut_down_all(self.started))
            self.do(self.service.close())
            self.loop.close()
            asyncio.set_event_loop(None)
            shutil.rmtree(self.folder)


def make_service(clock: VirtualClock, file: str) -> Service:
    service = Service("shop", metadata=Base.metadata, clock=clock)
    service.publisher(Noted)

    @service.subscriber(Noted)
    async def note(event: Noted, tx: Transaction) -> None:
        tx.session.add(Effect(number=event.number))

    service.configure(Settings(database_urls={"shop": f"sqlite:///{file}"}, schemas=Path(file)))
    return service


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A database with its tables, SQLite on the event loop, and no logs."""
    file = tmp_path / "shop.db"
    monkeypatch.setattr(relay_module, "PARK_AFTER", PARK_AFTER)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    kept = KeptConnections()
    with on_the_loop(kept):
        loop = VirtualLoop()

        async def create_tables() -> None:
            service = make_service(VirtualClock(loop, Ids()), str(file))
            await service.database()
            await service.close()

        loop.run_until_complete(create_tables())
        loop.close()
        kept.close()
        yield file
    kept.close()
    structlog.reset_defaults()


@pytest.mark.parametrize("examples", [10, pytest.param(2_000, marks=pytest.mark.soak)])
def test_committed_messages_take_effect_once_and_in_order_under_random_faults(
    template: Path, examples: int
) -> None:
    machine = type("Machine", (OutboxAndInbox,), {"template": template})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, derandomize=True, deadline=None
        ),
    )


@pytest.mark.parametrize("times", [0, 1])
def test_messages_behind_a_retried_parked_message_are_not_overtaken(
    template: Path, times: int
) -> None:
    """A case that the state machine above found; `times` is how often another key is rejected."""
    machine = type("Machine", (OutboxAndInbox,), {"template": template})()
    machine.begin(whole=False)
    machine.reject_the_next_messages_of_a_key(key="b", times=PARK_AFTER, keys=[])
    machine.let_time_pass(6.0)  # until the watermark has passed the second message
    machine.reject_the_next_messages_of_a_key(key="c", times=times, keys=[])
    machine.retry_or_skip_parked(retry=True)
    machine.commit(keys=["b"], delayed=False, good=True)
    machine.let_time_pass(2.0)
    assert [json.loads(each.data)["number"] for each in machine.broker.sent if each.key == "b"] == [
        1,
        2,
        5,
    ]
    machine.teardown()
