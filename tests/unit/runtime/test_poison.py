"""When cautious mode starts and ends, and when a message is suspected as a poison message."""

from __future__ import annotations

import math

from eventmesh.runtime.consuming.poison import (
    CAUTIOUS_AFTER,
    FIRST_DELIVERIES_TO_LEAVE,
    SUSPECT_AFTER,
    CautiousMode,
    delivery_limit,
    is_suspect,
)
from eventmesh.transports.base import Delivery
from eventmesh.wire.envelope import Envelope


def delivered(*counts: int) -> list[Delivery]:
    """One delivery for each redelivery count."""
    return [Delivery(Envelope({}, b""), deliveries=count) for count in counts]


NORMAL = CautiousMode(is_on=False)


def test_a_subscription_starts_in_cautious_mode() -> None:
    assert CautiousMode().is_on


def test_cautious_mode_ends_after_enough_first_deliveries() -> None:
    mode = CautiousMode()
    for _ in range(FIRST_DELIVERIES_TO_LEAVE):
        assert mode.is_on
        mode = mode.after(delivered(1))
    assert not mode.is_on


def test_a_redelivery_count_up_to_the_limit_does_not_start_cautious_mode() -> None:
    assert not NORMAL.after(delivered(1, CAUTIOUS_AFTER, 1)).is_on


def test_one_message_delivered_too_often_starts_cautious_mode() -> None:
    assert NORMAL.after(delivered(1, CAUTIOUS_AFTER + 1, 1)).is_on


def test_only_first_deliveries_end_cautious_mode() -> None:
    mode = CautiousMode().after(delivered(*[2] * FIRST_DELIVERIES_TO_LEAVE))
    assert mode.is_on
    assert not mode.after(delivered(*[1] * FIRST_DELIVERIES_TO_LEAVE)).is_on


def test_a_message_delivered_too_often_resets_the_count_of_first_deliveries() -> None:
    mode = CautiousMode().after(delivered(*[1] * (FIRST_DELIVERIES_TO_LEAVE - 1)))
    mode = mode.after(delivered(CAUTIOUS_AFTER + 1)).after(delivered(1))
    assert mode.is_on


def test_a_message_is_suspect_above_the_limit_of_deliveries() -> None:
    assert [is_suspect(each) for each in delivered(SUSPECT_AFTER, SUSPECT_AFTER + 1)] == [
        False,
        True,
    ]


def test_without_a_database_the_redelivery_count_has_a_minimum_limit() -> None:
    assert delivery_limit(10, starts_are_counted=False) == 10
    assert delivery_limit(1, starts_are_counted=False) == SUSPECT_AFTER + 2
    assert delivery_limit(1, starts_are_counted=True) == math.inf
