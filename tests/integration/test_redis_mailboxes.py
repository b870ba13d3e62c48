"""The scripts of ordered subscriptions against a model in Python: random publishing, taking,
settling, leaving, dying, replaying. At each step Redis gives what the model gives, and counts the
same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from eventmesh.transports.base import Order, Subscription
from eventmesh.transports.redis.entries import read_record
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.scripts.consuming import DECLARE
from eventmesh.transports.redis.scripts.operations import DISCARD, REPLAY
from eventmesh.transports.redis.scripts.ordering import (
    DECLARE_ORDER,
    ENTER,
    LEAVE,
    ORDER_STATS,
    SETTLE,
    TAKE,
    TAKE_OVER,
)
from eventmesh.wire.cloudevents import pack
from eventmesh.wire.envelope import Envelope
from tests.integration.redis_nodes import Node

pytest_plugins = ["tests.integration.redis_fixtures"]

ORDERED = Subscription("shop.handle", ("shop.placed", "shop.cancelled"), Order())
KEYS = Layout("mesh", one_slot=False).of(ORDERED)
NAMES = ("a", "b", "")
CONSUMERS = ("one", "two")
LIFETIME_MS = 1_000_000
NO_LIMIT = 1_000_000


@dataclass
class Message:
    """One message, as the model has it."""

    id: str
    attempt: int = 1
    deliveries: int = 0


@dataclass
class Box:
    """What the model knows of a key. With `consumer`, the first `out` messages are leased."""

    waiting: list[Message] = field(default_factory=list)
    consumer: str | None = None
    lease: int = 0
    out: int = 0
    settled: int = 0
    is_held: bool = False
    is_due: bool = False
    """Whether the next to take releases it."""

    def give_back(self, received: int) -> None:
        """End the lease; so many messages of the run were received."""
        for message in self.waiting[: max(0, received - self.settled)]:
            message.deliveries += 1
        self.consumer, self.out, self.settled = None, 0, 0


class Mailboxes(RuleBasedStateMachine):
    """See the module. `streams` are the messages that Redis need not have moved yet."""

    client: Redis
    after_dead = "continue"

    @initialize(after_dead=st.sampled_from(["continue", "hold"]))
    def declare(self, after_dead: str) -> None:
        self.client.flushall()
        self.after_dead = after_dead
        self.boxes: dict[str, Box] = defaultdict(Box)
        self.dead: list[tuple[str, str, bytes]] = []
        self.number = 0
        self.client.eval(DECLARE, len(KEYS.streams), *KEYS.streams, KEYS.group)
        self.run(DECLARE_ORDER, after_dead)
        for consumer in CONSUMERS:
            self.enter(consumer)

    def run(self, script: str, *arguments: str | int | bytes) -> Any:
        return self.client.eval(script, len(KEYS.ordered), *KEYS.ordered, KEYS.group, *arguments)

    def enter(self, consumer: str) -> None:
        known = [part for key, box in self.of(consumer) for part in (tag(key), box.lease)]
        kept = self.run(ENTER, consumer, 1, consumer, LIFETIME_MS, *known)
        assert sorted(kept) == sorted(tag(key).encode() for key, _ in self.of(consumer))

    def of(self, consumer: str) -> list[tuple[str, Box]]:
        return [(key, box) for key, box in self.boxes.items() if box.consumer == consumer]

    @rule(
        key=st.sampled_from(NAMES),
        messages=st.lists(st.sampled_from(ORDERED.messages), min_size=1, max_size=6),
    )
    def publish(self, key: str, messages: list[str]) -> None:
        for message in messages:
            self.number += 1
            fields = {"id": str(self.number), "data": b"\xff \x7f"[self.number % 2 :]}
            if key:
                fields["partitionkey"] = key
            # Ids grow across streams, as those of a publisher do.
            entry_id = f"{self.number // 3 + 1}-{self.number}"
            self.client.xadd(f"mesh:stream:{message}", fields, id=entry_id)  # type: ignore[arg-type]
            self.boxes[key].waiting.append(Message(str(self.number)))

    @rule(consumer=st.sampled_from(CONSUMERS), room=st.integers(1, 7))
    def take(self, consumer: str, room: int) -> None:
        for box in self.boxes.values():
            box.is_held, box.is_due = box.is_held and not box.is_due, False
        status, lease, taken, more, *_ = self.run(TAKE, consumer, 1, room, LIFETIME_MS, NO_LIMIT)
        assert status == b"taken"
        count = 0
        for of_key, records in taken:
            box = self.boxes[of_key.decode()[1:]]
            assert box.consumer is None
            assert not box.is_held
            for record, expected in zip(records, box.waiting, strict=False):
                opened, attempt, deliveries = read_record(record)
                assert isinstance(opened, Envelope)
                found = Message(opened.id, attempt, deliveries)
                assert found == expected
            assert len(records) <= len(box.waiting)
            box.consumer, box.lease, box.out, box.settled = consumer, lease, len(records), 0
            count += len(records)
        assert count <= room
        left = [each for each in self.boxes.values() if each.waiting and not each.consumer]
        assert count == room or more or all(each.is_held for each in left)

    @rule(data=st.data(), outcome=st.sampled_from(["done", "retry", "later", "dead"]))
    def settle(self, data: st.DataObject, outcome: str) -> None:
        if not any(box.consumer for box in self.boxes.values()):
            self.take(data.draw(st.sampled_from(CONSUMERS)), 7)
        leased = {key: box for key, box in self.boxes.items() if box.consumer}
        if not leased:
            return
        key = data.draw(st.sampled_from(sorted(leased)))
        box = leased[key]
        assert box.consumer is not None
        done = data.draw(st.integers(box.settled, box.out - (outcome != "done")))
        arguments = self.settlement(key, box, done, outcome)
        stale = [*arguments[:2], box.lease - 1, *arguments[3:]]
        before = self.run(ORDER_STATS)[:4]
        for consumer, each in ((box.consumer, stale), ("another", arguments)):
            assert self.run(SETTLE, consumer, 1000, *each) == []
            assert self.run(ORDER_STATS)[:4] == before  # it is not theirs, so nothing happened
        for _ in range(2):  # repeating it changes nothing
            assert self.run(SETTLE, box.consumer, 1000, *arguments) == []
        self.apply(key, box, done, outcome)

    def settlement(self, key: str, box: Box, done: int, outcome: str) -> list[str | int | bytes]:
        if outcome == "done" and done == box.out:
            return [1, tag(key), box.lease]
        more: dict[str, tuple[str | int | bytes, ...]] = {
            "done": ("done", 0),
            "retry": ("retry", 1, 0),
            "later": ("retry", 1, LIFETIME_MS),
            "dead": ("dead", 2, "envelope", pack(envelope(box.waiting[done - box.settled].id, key)))
            if outcome == "dead"
            else (),
        }
        return [0, tag(key), box.lease, done, *more[outcome]]

    def apply(self, key: str, box: Box, done: int, outcome: str) -> None:
        """Let the model settle as Redis did."""
        del box.waiting[: done - box.settled]
        box.settled = done
        if outcome == "done" and done < box.out:
            return
        box.give_back(0)
        if outcome in ("retry", "later"):
            box.waiting[0] = Message(box.waiting[0].id, box.waiting[0].attempt + 1)
            box.is_held = outcome == "later"
        elif outcome == "dead":
            [(entry_id, _)] = self.client.xrevrange(KEYS.dead, count=1)
            self.dead.append((box.waiting.pop(0).id, key, entry_id))
            box.is_held = self.after_dead == "hold"

    @rule()
    def become_due(self) -> None:
        """The time of each retry comes."""
        for of_key, due in self.client.zrange(KEYS.ordering[3], 0, -1, withscores=True):
            if due != float("inf"):
                self.client.zadd(KEYS.ordering[3], {of_key: 0})
                self.boxes[of_key.decode()[1:]].is_due = True

    @rule(consumer=st.sampled_from(CONSUMERS), data=st.data())
    def leave(self, consumer: str, data: st.DataObject) -> None:
        received: list[str | int] = []
        for key, box in self.of(consumer):
            number = data.draw(st.integers(box.settled, box.out))
            received += [tag(key), number]
            box.give_back(number)
        self.run(LEAVE, consumer, *received)
        self.enter(consumer)

    @rule(consumer=st.sampled_from(CONSUMERS))
    def die(self, consumer: str) -> None:
        for _, box in self.of(consumer):
            box.give_back(box.out)
        assert self.run(TAKE_OVER, consumer, consumer) == 1
        assert self.run(TAKE, consumer, 1, 5, LIFETIME_MS, NO_LIMIT) == [b"lost"]
        self.enter(consumer)

    @rule(consumer=st.sampled_from(CONSUMERS))
    def reconnect(self, consumer: str) -> None:
        self.enter(consumer)

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), is_replay=st.booleans())
    def decide(self, data: st.DataObject, is_replay: bool) -> None:
        """Replay or discard a dead letter."""
        letter = data.draw(st.sampled_from(self.dead))
        if data.draw(st.booleans()):  # others of its key may be with a consumer
            self.publish(letter[1], [ORDERED.messages[0]])
            self.take(CONSUMERS[0], 7)
        self.dead.remove(letter)
        message_id, key, entry_id = letter
        box = self.boxes[key]
        arguments: tuple[str | bytes, ...] = ("header", "", entry_id) if is_replay else (entry_id,)
        script = REPLAY if is_replay else DISCARD
        assert self.client.eval(script, len(KEYS.ordering), *KEYS.ordering, *arguments) == 1
        if is_replay:
            box.waiting.insert(box.out - box.settled, Message(message_id))
        others = [each for each in self.dead if each[1] == key]
        if self.after_dead == "hold" and not others:
            box.is_held = self.client.zscore(KEYS.ordering[3], tag(key)) is not None
            assert not box.is_held

    @invariant()
    def counts_are_the_same(self) -> None:
        if not hasattr(self, "boxes"):
            return
        ready, delayed, _, in_flight, *_ = self.run(ORDER_STATS)
        boxes = self.boxes.values()
        assert in_flight == sum(box.out - box.settled for box in boxes)
        in_streams = sum(
            group["lag"]
            for stream in KEYS.streams[:-1]
            for group in self.client.xinfo_groups(stream)
        )
        assert ready + delayed + in_flight + in_streams == sum(len(box.waiting) for box in boxes)
        held = [tag(key) for key, box in self.boxes.items() if box.is_held]
        assert delayed == sum(self.client.llen(KEYS.ordering[1] + each) for each in held)


def tag(key: str) -> str:
    return f":{key}" if key else ""


def envelope(message_id: str, key: str) -> Envelope:
    return Envelope({"id": message_id} | ({"partitionkey": key} if key else {}), b"")


def test_redis_does_what_the_model_does(node: Node) -> None:
    with node.client() as client:
        Mailboxes.client = client
        run_state_machine_as_test(
            Mailboxes,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
