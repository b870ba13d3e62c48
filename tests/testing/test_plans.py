"""Plans of faults: data that is drawn from a seed, written as text, and made smaller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.errors import UsageError
from eventmesh.testing.simulation.plan import Fault, Plan, Profile, draw

PROFILE = Profile(
    steps={"orders": 300, "payments/1": 120},
    calls={"orders": 90, "payments/1": 40},
    messages=12,
    places={f"orders: worker.py:{line} in run": [("orders", 10 * line)] for line in range(1, 21)},
    kinds_of_calls={
        "orders: broker: settle": [("orders", 1), ("orders", 2)],
        "payments: database payments: COMMIT": [("payments/1", number) for number in (1, 2, 3)],
    },
)


@given(st.integers(0, 100_000))
def test_a_plan_survives_being_written_and_read(seed: int) -> None:
    plan = draw(seed, PROFILE)
    assert Plan.parse(str(plan)) == plan


@given(st.integers(0, 100_000))
def test_the_same_seed_gives_the_same_plan(seed: int) -> None:
    assert draw(seed, PROFILE) == draw(seed, PROFILE)


@given(st.integers(1, 100_000))
def test_faults_strike_where_a_run_passes_or_not_far_behind(seed: int) -> None:
    for fault in draw(seed, PROFILE).faults:
        assert fault.process in {*PROFILE.steps, "broker"}
        assert 1 <= fault.number <= 1.3 * 300


def test_seed_0_is_a_run_without_faults() -> None:
    assert draw(0, PROFILE) == Plan(0)


def test_kills_come_to_every_place_in_as_many_seeds_as_need_be() -> None:
    steps = {fault.number for seed in range(1, 60) for fault in draw(seed, PROFILE).faults[:1]}
    assert steps >= {10 * line for line in range(1, 21)}


@given(st.integers(1, 100_000))
def test_a_smaller_plan_has_one_part_less(seed: int) -> None:
    plan = draw(seed, PROFILE)
    size = len(plan.faults) + plan.has_pace
    smaller = plan.smaller()
    assert len(smaller) == size
    assert all(len(each.faults) + each.has_pace == size - 1 for each in smaller)


@pytest.mark.parametrize(
    "written",
    [
        *("", "seven", "7~nothing", "7~kill:orders:x:1", "7~kill:orders:1", "7~burn:orders:1:1"),
        "7~kill:orders:1:1:COMMIT",
    ],
)
def test_what_is_not_a_plan_is_told_so(written: str) -> None:
    with pytest.raises(UsageError, match=r"is not a (plan|fault)"):
        Plan.parse(written)


def test_faults_are_told_in_words() -> None:
    assert Fault("kill", "orders/1", 7, 1.5).in_words() == (
        "orders/1 killed, started again after 1.5 s"
    )
    assert Fault("cut", "orders", 7, how="after").in_words() == (
        "a call of orders loses its connection after it is done"
    )
    assert Fault("cut", "orders", 3, how="before", call="COMMIT").in_words() == (
        "COMMIT number 3 of orders loses its connection before it is done"
    )
