"""A saga as a flow chart."""

from __future__ import annotations

from typing import Any

from eventmesh import Saga
from eventmesh.saga.graph import mermaid
from tests.unit.saga.trips import Approved, Denied, Trip, add_pivot, add_step, new_saga


def with_wait(**options: Any) -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    wait = saga.wait("go", ok=Approved, correlate=lambda event: event.trip, **options)
    saga.flow(add_step(saga, "a", failed=(), timeout=None) >> wait >> add_pivot(saga, "p"))
    return saga


def turns_back(saga: Saga[Trip]) -> list[str]:
    """What leads to the end that is undone, by step."""
    lines = mermaid(saga.definition).splitlines()
    return [line.strip().removesuffix(" .-> undone") for line in lines if line.endswith("> undone")]


def test_a_step_says_what_lets_the_saga_turn_back() -> None:
    saga = with_wait(failed=Denied, timeout="1d")
    assert turns_back(saga) == ["a -. dead letter", "go -. Denied or time-out", "p -. Failed"]


def test_a_wait_that_can_neither_fail_nor_time_out_does_not_lead_back() -> None:
    """It sends nothing, so nothing of it can be dead-lettered."""
    assert turns_back(with_wait(timeout=None)) == ["a -. dead letter", "p -. Failed"]


def test_a_saga_that_only_waits_has_no_end_that_is_undone() -> None:
    saga = new_saga(key=lambda state: state.trip)
    saga.flow(saga.wait("go", ok=Approved, timeout=None, correlate=lambda event: event.trip))
    assert "undone" not in mermaid(saga.definition)
