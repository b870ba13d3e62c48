"""Delays and texts of outcomes are limited to what every transport can store."""

from __future__ import annotations

import math

import pytest

from eventmesh.transports.outcome import LONGEST_DELAY, MOST_CHARACTERS, Dead, RetryAfter


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        (0.0, 0.0),
        (1.5, 1.5),
        (LONGEST_DELAY, LONGEST_DELAY),
        (1e300, LONGEST_DELAY),
        (math.inf, LONGEST_DELAY),
        (10**400, LONGEST_DELAY),
        (-1.0, 0.0),
        (-math.inf, 0.0),
        (math.nan, 0.0),
    ],
)
def test_a_delay_is_limited_to_the_supported_range(requested: float, expected: float) -> None:
    assert RetryAfter(requested).delay == expected


def test_the_texts_of_a_dead_letter_can_be_stored_by_brokers_and_databases() -> None:
    dead = Dead("\ud800 ü \x00", "\udfff\x00")
    assert (dead.reason, dead.error) == ("\\ud800 ü \\x00", "\\udfff\\x00")


@pytest.mark.parametrize("text", ["x" * 9_000, "\ud800" * 9_000])
def test_a_long_error_keeps_its_beginning_and_its_end(text: str) -> None:
    dead = Dead("reason", f"the beginning {text} the end")
    assert len(dead.error) == MOST_CHARACTERS
    assert dead.error.startswith("the beginning ")
    assert dead.error.endswith(" the end")
