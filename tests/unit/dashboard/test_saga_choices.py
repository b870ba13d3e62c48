"""What an operator may choose on the page of a saga that waits for several things."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eventmesh.dashboard.pages.sagas import choices
from eventmesh.persistence.sagas import SagaRow


def row(waiting_for: str, **steps: dict[str, Any]) -> SagaRow:
    return SagaRow(
        id="1",
        name="trips.trip",
        version=1,
        status="running",
        state={},
        steps=steps,
        reason=None,
        row_version=1,
        waiting_for=waiting_for,
    )


def test_the_items_of_a_step_are_chosen_one_by_one() -> None:
    items = {"pick[0]": {"status": "sent"}, "pick[1]": {"status": "undo_sent"}}
    pick = {"status": "done", "items": 3}
    assert choices(
        row("pick,pick:undo", pick=pick, **items, **{"pick[2]": {"status": "done"}})
    ) == [
        "pick[0]",
        "pick[1]:undo",
    ]


def test_what_a_parked_saga_stands_for_can_be_chosen() -> None:
    assert choices(row("pay", pay={"status": "timed_out"})) == ["pay"]


def test_what_a_saga_is_parked_for_can_be_chosen_beside_what_it_still_waits_for() -> None:
    parked = replace(
        row("pay,ship", pay={"status": "timed_out"}, ship={"status": "sent"}),
        status="parked",
        details={"parking": {"before": "running", "reason": "no answer", "unit": "pay"}},
    )
    assert choices(parked) == ["ship", "pay"]
