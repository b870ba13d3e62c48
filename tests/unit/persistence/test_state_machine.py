"""Outbox, relays and inbox against a model, under random faults (a state machine of Hypothesis).

Two relays of one service run on an event loop with a virtual clock (`tests.crash.virtual_loop`), on
a SQLite file and a broker in memory. Transactions commit or fail. A relay is killed at any of its
steps, or stands still until others have its leases. The broker rejects messages, is lost in the
middle of a batch, or redelivers. Parked messages are retried or skipped, and old rows are purged.
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
from eventmesh.transports.memory import MemoryTransport
from tests.crash import instrumentation
from tests.crash.faulty_broker import FaultyBroker
from tests.crash.killable_relay import LEASE_TIME, KillableRelay, query, shut_down_all, start
from tests.crash.virtual_loop import VirtualLoop
from tests.crash.worker_run import LoopClock

T = TypeVar("T")

KEYS = ("a", "b", "c")
DELAY = 1.5
WINDOW = 20.0
"""Seconds after which rows of the inbox are purged: longer than any step here takes."""

PARK_AFTER = 3
"""Rejections after which a message is parked: fewer than in production, so that it happens."""

SETTLED_AFTER = 15.0
"""Seconds within which everything that can be published has been."""

STEPS = st.integers(1, 60)
"""At which step of a relay something happens; a batch takes fewer than the most."""

SOME_KEYS = st.lists(st.sampled_from(KEYS), max_size=6)
"""The keys of messages that are committed right before something happens, so that it happens to
them."""


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """Only the inbox keeps an effect from happening twice."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Noted(Event, name="shop.noted", version=1, key="key"):
    key: str
    number: int


class OutboxAndInbox(RuleBasedStateMachine):
    """The model is the list of committed messages, in their order."""

    template: Path

    # What there is

    @initialize(whole=st.booleans())
    def begin(self, whole: bool) -> None:
        random.seed(0)
        self.folder = tempfile.mkdtemp()
        self.file = f"{self.folder}/shop.db"
        shutil.copy(self.template, self.file)
        self.loop = VirtualLoop(0.0, server=False)
        asyncio.set_event_loop(self.loop)
        self.clock = LoopClock(self.loop)
        self.broker = FaultyBroker(whole)
        self.memory = MemoryTransport(self.clock)
        self.committed: list[Noted] = []
        self.delayed: set[int] = set()
        self.skipped: set[int] = set()
        self.ever_refused: set[str] = set()
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
        return self.loop.run_until_complete(work)

    # What happens

    @rule(keys=SOME_KEYS, delayed=st.booleans(), good=st.sampled_from((True, True, False)))
    def commit(self, keys: list[str], delayed: bool, good: bool) -> None:
        self.do(self._commit(keys, delayed=delayed, good=good))

    async def _commit(self, keys: list[str], *, delayed: bool = False, good: bool = True) -> None:
        """The last may be delayed."""
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
    def let_a_relay_stand_still(self, which: int, steps: int, keys: list[str]) -> None:
        self.do(self._commit(keys))
        if not self.relays[which].run.paused:
            self.do(self.relays[which].pause(steps))

    @rule()
    def let_all_relays_go_on(self) -> None:
        for each in self.relays:
            each.resume()

    @rule(after=st.integers(0, 4), tells=st.booleans(), keys=SOME_KEYS)
    def lose_the_broker_in_the_next_batch(self, after: int, tells: bool, keys: list[str]) -> None:
        self.do(self._commit(keys))
        self.broker.lost_after, self.broker.confirms_before_loss = after, tells

    @rule(key=st.sampled_from(KEYS), times=st.integers(1, 2 * PARK_AFTER), keys=SOME_KEYS)
    def refuse_the_next_of_a_key(self, key: str, times: int, keys: list[str]) -> None:
        self.do(self._commit([*keys, key, key]))
        self.broker.rejects[key] = times
        self.ever_refused.add(key)

    @rule()
    def refuse_none_any_more(self) -> None:
        self.broker.rejects.clear()

    @precondition(lambda self: self.parked())
    @rule(retry=st.booleans())
    def see_to_what_is_parked(self, retry: bool) -> None:
        self.do(self._see_to_parked(retry=retry))

    async def _see_to_parked(self, *, retry: bool) -> None:
        database = await self.service.database()
        async with database.connection() as connection:
            if retry:
                await parked.retry(connection, self.clock.now())
                return
            rows = query(self.file, "SELECT seq, data FROM eventmesh_outbox WHERE parked")
            gone = await parked.skip(connection, [seq for seq, _ in rows])
            self.skipped |= {json.loads(data)["number"] for seq, data in rows if seq in gone}

    @rule(limit=st.integers(1, 5), settled=st.booleans())
    def deliver(self, limit: int, settled: bool) -> None:
        self.do(self._deliver(limit, settled=settled))

    async def _deliver(self, limit: int, *, settled: bool) -> bool:
        """Deliver what is there, and settle it, or lose the worker before that."""
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
    def have_the_broker_repeat_itself(self, choice: random.Random) -> None:
        self.do(self.memory.publish([choice.choice(self.broker.sent)]))

    @precondition(lambda self: self.broker.sent)
    @rule()
    def purge_when_all_is_quiet_and_old(self) -> None:
        self.settle_all()
        self.broker.sent.clear()  # nothing that old comes back
        self.loop.now += WINDOW + 1  # all sleep through it
        self.do(self._purge())

    async def _purge(self) -> None:
        database = await self.service.database()
        async with database.connection() as connection:
            before = self.clock.now() - timedelta(seconds=WINDOW)
            await purge.purge(connection, purge.RECEIVED, before, 1)

    # What must be

    @invariant()
    def every_effect_was_committed_and_happened_once_in_its_order(self) -> None:
        if not hasattr(self, "file"):
            return
        assert not self.broker.violations
        times = Counter(self.effects())
        assert not [number for number, count in times.items() if count > 1]
        promised = {each.number for each in self.committed}
        assert set(times) <= promised
        assert {json.loads(each.data)["number"] for each in self.broker.sent} <= promised
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
        """Let time pass until nothing more happens: nothing is lost, and parked keys block only
        themselves."""
        self.broker.lost_after = None
        self.broker.rejects.clear()
        self.let_all_relays_go_on()
        until = self.loop.time() + SETTLED_AFTER
        # Slept first: who goes on only now may free a key that is parked, and what waits behind it.
        self.do(asyncio.sleep(0.5))
        while set(self.waiting()) - self.parked() and self.loop.time() < until:
            self.do(asyncio.sleep(0.5))
        while self.do(self._deliver(100, settled=True)):
            pass
        assert self.parked() <= self.ever_refused
        assert set(self.waiting()) <= self.parked()
        done = set(self.effects()) | self.skipped
        lost = [each for each in self.committed if each.number not in done]
        # The broker may have taken one, and have refused it when it was sent once more.
        assert Counter(each.key for each in lost) <= self.waiting()
        self.every_effect_was_committed_and_happened_once_in_its_order()

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


def make_service(clock: LoopClock, file: str) -> Service:
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
    with instrumentation.on_virtual_loops():
        loop = VirtualLoop(0.0, server=False)

        async def make() -> None:
            service = make_service(LoopClock(loop), str(file))
            await service.database()
            await service.close()

        loop.run_until_complete(make())
        loop.close()
        yield file
    structlog.reset_defaults()


@pytest.mark.parametrize("examples", [60, pytest.param(2_000, marks=pytest.mark.soak)])
def test_what_is_committed_takes_effect_once_in_its_order_whatever_happens(
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
def test_what_follows_a_message_that_is_taken_at_last_is_not_overtaken(
    template: Path, times: int
) -> None:
    """Whether or not another one is rejected with it. Found by the state machine above."""
    machine = type("Machine", (OutboxAndInbox,), {"template": template})()
    machine.begin(whole=False)
    machine.refuse_the_next_of_a_key(key="b", times=PARK_AFTER, keys=[])
    machine.let_time_pass(6.0)  # until the relays look no more where the second one waits
    machine.refuse_the_next_of_a_key(key="c", times=times, keys=[])
    machine.see_to_what_is_parked(retry=True)
    machine.commit(keys=["b"], delayed=False, good=True)
    machine.let_time_pass(2.0)
    assert [json.loads(each.data)["number"] for each in machine.broker.sent if each.key == "b"] == [
        1,
        2,
        5,
    ]
    machine.teardown()
