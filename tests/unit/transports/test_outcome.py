"""Whatever is asked for, an outcome is one that every transport can carry out."""

from __future__ import annotations

import math

import pytest

from eventmesh.transports.outcome import LONGEST_DELAY, MOST_CHARACTERS, Dead, RetryAfter


@pytest.mark.parametrize(
    ("asked", "given"),
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
def test_a_delay_is_bounded(asked: float, given: float) -> None:
    assert RetryAfter(asked).delay == given


def test_a_dead_letter_has_texts_that_can_be_stored() -> None:
    dead = Dead("\ud800 ü \x00", "\udfff")
    assert (dead.reason, dead.error) == ("\\ud800 ü \x00", "\\udfff")


@pytest.mark.parametrize("text", ["x" * 9_000, "\ud800" * 9_000])
def test_a_long_error_keeps_its_beginning_and_its_end(text: str) -> None:
    dead = Dead("reason", f"the beginning {text} the end")
    assert len(dead.error) == MOST_CHARACTERS
    assert dead.error.startswith("the beginning ")
    assert dead.error.endswith(" the end")
