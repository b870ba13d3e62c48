"""Which part of a prefix a key belongs to, in which slots the parts are, and how the answers of
several parts become one."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime

import pytest
from redis.crc import key_slot

from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    DeadLetter,
    PublishResult,
    SubscriptionStats,
    Unrouted,
)
from eventmesh.transports.facts import BrokerFacts, KnownSubscription, RedisFacts, StreamFacts
from eventmesh.transports.redis.keys import MOST_SLOTS, layouts, part_of_key, part_prefixes
from eventmesh.transports.redis.parts.concurrently import concurrently
from eventmesh.transports.redis.parts.merging import (
    ids_by_part,
    kept_of_each,
    merged_facts,
    merged_letters,
    merged_results,
    merged_stats,
    merged_unrouted,
)
from eventmesh.transports.redis.prefetch import Prefetch
from eventmesh.wire.envelope import Envelope

# --- slots and parts ---


def owner(layout_key: str, masters: int) -> int:
    """Which of so many masters has a key, where they share the slots as `redis-cli --cluster
    create` divides them."""
    bounds = [round(16384 / masters * (number + 1)) - 1 for number in range(masters)]
    slot = key_slot(layout_key.encode())
    return next(number for number, bound in enumerate(bounds) if slot <= bound)


@pytest.mark.parametrize("prefix", ["eventmesh", "mesh", "shop.2", "łódź"])
@pytest.mark.parametrize(("slots", "masters"), [(3, 3), (6, 3), (12, 4), (60, 5), (64, 2)])
def test_masters_that_share_the_slots_evenly_share_the_parts_evenly(
    prefix: str, slots: int, masters: int
) -> None:
    parts = layouts(prefix, slots, one_slot=True)
    owners = Counter(owner(part.stream("a.b"), masters) for part in parts)
    assert set(owners.values()) == {slots // masters}


def test_each_part_has_one_slot_and_the_first_has_the_prefix_itself() -> None:
    parts = layouts("mesh", MOST_SLOTS, one_slot=True)
    slots = [{key_slot(part.stream(name).encode()) for name in ("a.b", "c.d")} for part in parts]
    assert all(len(each) == 1 for each in slots)
    assert len(set().union(*slots)) == MOST_SLOTS
    assert parts[0].stream("a.b") == "{mesh}:stream:a.b"
    assert all(part.stream("").startswith("{mesh.") for part in parts[1:])


def test_the_names_of_parts_never_change() -> None:
    """What a release has written, the next one finds."""
    assert part_prefixes("eventmesh", 3) == NAMES_OF_THREE
    assert [part_of_key(f"customer-{number}", 6) for number in range(8)] == PARTS_OF_CUSTOMERS


NAMES_OF_THREE = ("eventmesh", "eventmesh.1.13", "eventmesh.2.3")
PARTS_OF_CUSTOMERS = [1, 3, 3, 5, 0, 4, 2, 2]


def test_keys_are_spread_evenly_and_messages_without_a_key_stay_together() -> None:
    numbers = Counter(part_of_key(f"customer-{number}", 6) for number in range(6_000))
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    assert all(800 < number < 1_200 for number in numbers.values())
    assert part_of_key(None, 6) == 0


# --- prefetch ---


class Holding:
    """A consumer of a part that holds so many messages."""

    def __init__(self, prefetch: Prefetch, held: int = 0, received: int = 0) -> None:
        self.held = held
        self.received = received
        prefetch.add(self)


def test_one_part_has_the_whole_prefetch() -> None:
    prefetch = Prefetch(10)
    only = Holding(prefetch, held=4, received=1)
    assert (prefetch.room(), prefetch.receivable) == (6, 9)
    assert prefetch.while_waiting(streams=2) == 3
    assert prefetch.may_fetch(only)


def test_parts_take_turns() -> None:
    """The steps of the module's table."""
    prefetch = Prefetch(100)
    a, b, c = (Holding(prefetch) for _ in range(3))

    def whose_turn() -> list[Holding]:
        """Those that may fetch, one after the other; each finds nothing."""
        return [each for each in (a, b, c) if prefetch.may_fetch(each)]

    assert prefetch.may_fetch(a)
    assert prefetch.room() == 50
    with prefetch.fetching(a, 50):
        assert prefetch.may_fetch(b)
        with prefetch.fetching(b, 50):
            assert not prefetch.may_fetch(c)
            a.held, b.held = 50, 50
    assert not prefetch.may_fetch(a)
    assert not prefetch.may_fetch(b)
    a.held = 20
    assert [prefetch.may_fetch(each) for each in (b, a, c)] == [False, False, True]
    assert prefetch.room_made.is_set(), "those that wait look again"
    assert [prefetch.may_fetch(each) for each in (b, a)] == [False, True]
    with prefetch.fetching(a, prefetch.room()):
        assert not prefetch.may_fetch(b)
    assert prefetch.may_fetch(b)


def test_a_part_fetches_if_it_gets_enough_or_if_the_worker_has_run_out() -> None:
    prefetch = Prefetch(100)
    a, b = (Holding(prefetch) for _ in range(2))
    a.held, b.held = 40, 35
    assert not prefetch.may_fetch(a)
    b.held = 34
    assert prefetch.may_fetch(a)
    b.held = 35
    assert not prefetch.may_fetch(a)
    a.received, b.received = 40, 35
    assert prefetch.may_fetch(a)


def test_a_part_that_has_something_else_to_do_holds_up_no_other() -> None:
    prefetch = Prefetch(10)
    a, b = (Holding(prefetch) for _ in range(2))
    a.held = 10
    assert [prefetch.may_fetch(each) for each in (a, b)] == [False, False]
    a.held = 0
    assert not prefetch.may_fetch(b)
    prefetch.leave_queue(a)
    assert prefetch.room_made.is_set()
    assert prefetch.may_fetch(b)


def test_with_a_prefetch_of_one_no_part_is_left_out() -> None:
    prefetch = Prefetch(1)
    a, b = (Holding(prefetch) for _ in range(2))
    fetched = []
    for _ in range(4):
        for each in (a, b):
            if prefetch.may_fetch(each):
                each.held = 1
                fetched.append(each)
        fetched[-1].held = 0
    assert fetched == [a, b, a, b]


# --- merging ---


def envelopes(*ids: str) -> list[Envelope]:
    return [Envelope({"id": id_}, b"") for id_ in ids]


def test_a_batch_is_confirmed_if_all_parts_have_confirmed_theirs() -> None:
    assert merged_results([ALL_CONFIRMED, ALL_CONFIRMED]) == ALL_CONFIRMED


def test_what_a_part_rejected_or_did_not_answer_is_so_in_the_whole() -> None:
    lost = Unreachable("lost")
    merged = merged_results(
        [
            ALL_CONFIRMED,
            PublishResult({"a": "full"}),
            PublishResult.interrupted(envelopes("b", "c"), lost, {"d": "odd"}),
        ]
    )
    assert merged == PublishResult({"a": "full", "d": "odd"}, frozenset({"b", "c"}), lost)


def test_numbers_of_messages_are_added_up_and_workers_are_not() -> None:
    first = SubscriptionStats(1, 2, 3, 4, oldest_age=None, consumers=2, held=1)
    second = SubscriptionStats(10, 20, 30, 40, oldest_age=7.0, consumers=3, declared=False)
    assert merged_stats([first, second]) == SubscriptionStats(
        11, 22, 33, 44, oldest_age=7.0, consumers=3, declared=False, held=1
    )


def test_unrouted_messages_of_a_name_are_added_up() -> None:
    merged = merged_unrouted(
        [
            [Unrouted("b", 1, 2.0), Unrouted("c", 1, 1.0)],
            [Unrouted("a", 5, 1.0)],
            [Unrouted("b", 2, 9.0)],
        ]
    )
    assert merged == [Unrouted("a", 5, 1.0), Unrouted("b", 3, 9.0), Unrouted("c", 1, 1.0)]


@pytest.mark.parametrize(
    ("numbers", "keep", "kept"),
    [
        ([30, 10], 12, [9, 3]),
        ([0, 30, 0], 12, [0, 12, 0]),
        ([3, 3, 3], 10, [3, 3, 3]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([7, 5, 4], 5, [2, 2, 1]),
    ],
)
def test_a_purge_keeps_so_many_messages_in_total(
    numbers: list[int], keep: int, kept: list[int]
) -> None:
    assert kept_of_each(numbers, keep) == kept


def letter(id_: str, data: bytes = b"") -> DeadLetter:
    died_at = datetime(2026, 1, 1, tzinfo=UTC)
    return DeadLetter(id_, "s.h", Envelope({"id": id_}, data), "why", "", 1, died_at)


def test_dead_letters_of_several_parts_are_listed_oldest_first_with_the_number_of_their_part() -> (
    None
):
    letters = [[letter("5-0"), letter("9-0")], [], [letter("5-1"), letter("10-0")]]
    ids = [each.id for each in merged_letters(letters, 10, None, None)]
    assert ids == ["0-5-0", "2-5-1", "0-9-0", "2-10-0"]
    assert [each.id for each in merged_letters(letters, 2, None, None)] == ids[:2]
    assert [each.id for each in merged_letters(letters, 9, None, ["2-10-0"])] == ["2-10-0"]
    assert ids_by_part([*ids, "7-5-0", "01900000-0000-7000-8000-000000000000"], 3) == [
        {"5-0": "0-5-0", "9-0": "0-9-0"},
        {},
        {"5-1": "2-5-1", "10-0": "2-10-0"},
    ]


def test_the_ids_of_one_part_are_those_of_redis() -> None:
    assert [each.id for each in merged_letters([[letter("5-0")]], 10, None, None)] == ["5-0"]
    assert ids_by_part(["5-0", "anything"], 1) == [{"5-0": "5-0", "anything": "anything"}]


GOOD = RedisFacts("master", True, "everysec", "", True, 100, 10, "noeviction")


def test_facts_of_several_masters_say_what_is_wrong_with_any() -> None:
    full = RedisFacts("master", True, "everysec", "", True, 100, 90, "allkeys-lru")
    careless = RedisFacts("slave", False, None, None, False, 0, 500, "noeviction")
    merged = merged_facts(
        [
            BrokerFacts(
                "8.0.2",
                0.1,
                subscriptions=(KnownSubscription("s.h", 3),),
                forbidden=(),
                streams=(StreamFacts("a.b", 10, 4, 1),),
                redis=GOOD,
            ),
            BrokerFacts(
                "7.2.5",
                -0.5,
                unknown={"redis": "why"},
                subscriptions=(KnownSubscription("s.h", 4), KnownSubscription("t.i", None)),
                forbidden=("XTRIM: no",),
                streams=(StreamFacts("a.b", 5, None, 2),),
                redis=full,
            ),
            BrokerFacts("8.0.2", 0.0, subscriptions=(), forbidden=(), streams=(), redis=careless),
        ]
    )
    assert merged == BrokerFacts(
        "7.2.5",
        -0.5,
        unknown={"redis": "why"},
        subscriptions=(KnownSubscription("s.h", 7), KnownSubscription("t.i", None)),
        forbidden=("XTRIM: no",),
        streams=(StreamFacts("a.b", 15, None, 2),),
        redis=RedisFacts("slave", False, None, None, False, 100, 90, "allkeys-lru"),
    )


# --- asking all parts ---


async def answer(result: int, error: Exception | None = None) -> int:
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return result


async def test_all_parts_are_asked_and_answer_in_order() -> None:
    assert await concurrently([answer(1), answer(2)]) == [1, 2]
    assert await concurrently([answer(1)]) == [1]


async def test_a_mistake_is_reported_before_an_unreachable_part() -> None:
    with pytest.raises(UsageError):
        await concurrently([answer(1), answer(0, Unreachable("lost")), answer(0, UsageError("no"))])
    with pytest.raises(Unreachable):
        await concurrently([answer(1), answer(0, Unreachable("lost"))])
