"""How relays share the buckets: a model of `renew` (announce, share, write) that calls `share`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from eventmesh.persistence.leases import Lease, share

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
LEASE_TIME = timedelta(seconds=3)

relays = st.sampled_from(["a", "b", "c", "d", "e"])
steps = st.lists(
    st.tuples(st.just("turn"), relays)
    | st.tuples(st.just("leave"), relays)
    | st.tuples(st.just("time"), st.integers(1, 4)),
    max_size=40,
)


class World:
    """The lease rows, the announced relays and the time."""

    def __init__(self, buckets: int) -> None:
        self.now = BEGINNING
        self.leases = [Lease(bucket, None, None) for bucket in range(buckets)]
        self.announced: dict[str, datetime] = {}

    def do(self, action: str, value: str | int) -> None:
        match action, value:
            case "turn", str() as owner:
                self.turn(owner)
            case "leave", str() as owner:
                self.announced.pop(owner, None)
                self.write(owner, frozenset())
            case "time", int() as seconds:
                self.now += timedelta(seconds=seconds)

    def turn(self, owner: str) -> None:
        self.announced = {relay: end for relay, end in self.announced.items() if end > self.now}
        self.announced[owner] = self.now + LEASE_TIME
        held = share(self.leases, owner, sorted(self.announced), self.now)
        owned_by_others = {
            b for other in self.announced if other != owner for b in self.owned(other)
        }
        assert not held & owned_by_others, "a bucket has two owners"
        self.write(owner, held)

    def write(self, owner: str, held: frozenset[int]) -> None:
        until = self.now + LEASE_TIME
        self.leases = [
            Lease(row.bucket, owner, until)
            if row.bucket in held
            else (Lease(row.bucket, None, None) if row.owner == owner else row)
            for row in self.leases
        ]

    def owned(self, owner: str) -> set[int]:
        """The buckets that this relay may publish now."""
        return {row.bucket for row in self.leases if row.owner == owner and not row.free(self.now)}


@given(st.integers(1, 32), steps)
def test_a_bucket_never_has_two_owners(buckets: int, steps: list[tuple[str, str | int]]) -> None:
    world = World(buckets)
    for step in steps:
        world.do(*step)


@given(st.integers(1, 32), steps, st.sets(relays, min_size=1).map(sorted))
def test_remaining_relays_own_all_buckets_fairly_after_the_leases_of_others_expire(
    buckets: int, steps: list[tuple[str, str | int]], stay: list[str]
) -> None:
    world = World(buckets)
    for step in steps:
        world.do(*step)
    world.now += LEASE_TIME  # the leases of all other relays expire
    for owner in stay * 2:
        world.turn(owner)
    assert_fair(world, stay)


@given(st.integers(1, 32), steps, st.permutations("abcde"), st.integers(1, 5))
def test_shares_are_fair_after_three_renewals_from_any_state(
    buckets: int, steps: list[tuple[str, str | int]], everybody: list[str], count: int
) -> None:
    world = World(buckets)
    for step in steps:
        world.do(*step)
    stay, leave = everybody[:count], everybody[count:]
    for owner in leave:
        world.do("leave", owner)
    # In the first round relays are announced, in the second release, and in the third acquire.
    for owner in stay * 3:
        world.turn(owner)
    assert_fair(world, stay)


def assert_fair(world: World, owners: list[str]) -> None:
    """Every bucket has an owner, shares differ by at most one, and each relay has a bucket if there
    are enough.
    """
    parts = [world.owned(owner) for owner in owners]
    sizes = [len(part) for part in parts]
    assert set().union(*parts) == {row.bucket for row in world.leases}
    assert sum(sizes) == len(world.leases)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1 or len(world.leases) < len(owners)


def test_five_relays_share_sixteen_buckets_evenly() -> None:
    world = World(16)
    for owner in "abcde" * 4:
        world.turn(owner)
    assert [len(world.owned(owner)) for owner in "abcde"] == [4, 3, 3, 3, 3]


@given(st.integers(0, 32), st.sets(st.text(max_size=3), min_size=1).map(list))
def test_shares_of_free_buckets_add_up_and_differ_by_one_at_most(
    buckets: int, owners: list[str]
) -> None:
    free = [Lease(bucket, None, None) for bucket in range(buckets)]
    sizes = [len(share(free, owner, owners, BEGINNING)) for owner in owners]
    assert sum(sizes) == buckets
    assert max(sizes) - min(sizes) <= 1


@given(st.permutations("abcde"))
def test_the_order_of_the_relays_does_not_matter(owners: list[str]) -> None:
    free = [Lease(bucket, None, None) for bucket in range(16)]
    for owner in owners:
        assert share(free, owner, owners, BEGINNING) == share(free, owner, list("abcde"), BEGINNING)


@given(st.integers(1, 32), st.integers(1, 5))
def test_a_relay_keeps_its_buckets_while_the_relays_stay_the_same(buckets: int, count: int) -> None:
    world = World(buckets)
    owners = list("abcde"[:count])
    for owner in owners * 2:
        world.turn(owner)
    before = world.leases
    for owner in owners:
        world.turn(owner)
    assert world.leases == before


def test_a_relay_prefers_its_own_buckets_to_free_ones() -> None:
    until = BEGINNING + LEASE_TIME
    leases = [
        Lease(0, None, None),
        Lease(1, None, None),
        Lease(2, "a", until),
        Lease(3, "a", until),
    ]
    assert share(leases, "a", ["a", "b"], BEGINNING) == {2, 3}


def test_a_relay_releases_buckets_for_a_new_relay() -> None:
    world = World(16)
    world.turn("a")
    assert len(world.owned("a")) == 16
    world.turn("b")
    assert len(world.owned("b")) == 0
    world.turn("a")
    world.turn("b")
    assert (len(world.owned("a")), len(world.owned("b"))) == (8, 8)


def test_the_buckets_of_a_dead_relay_are_acquired_when_its_leases_expire() -> None:
    world = World(16)
    for owner in "aba":
        world.turn(owner)
    world.now += LEASE_TIME - timedelta(milliseconds=1)
    world.turn("b")
    assert len(world.owned("b")) == 8
    world.now += timedelta(milliseconds=1)
    world.turn("b")
    assert len(world.owned("b")) == 16


def test_a_lease_is_free_from_the_moment_it_expires() -> None:
    lease = Lease(0, "a", BEGINNING)
    assert lease.free(BEGINNING)
    assert not lease.free(BEGINNING - timedelta(microseconds=1))
    assert Lease(0, None, None).free(BEGINNING)


def test_the_share_of_no_buckets_is_empty() -> None:
    assert share([], "a", ["a", "b", "c"], BEGINNING) == frozenset()
