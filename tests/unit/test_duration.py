from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.duration import exact_span, seconds
from eventmesh.errors import UsageError


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("200ms", 0.2),
        ("1.5s", 1.5),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        (" 30 s ", 30.0),
        (3, 3.0),
        (0.25, 0.25),
        (0, 0.0),
        (timedelta(minutes=2), 120.0),
    ],
)
def test_a_duration_is_a_number_with_a_unit_a_number_of_seconds_or_a_timedelta(
    written: object, expected: float
) -> None:
    assert seconds(written) == pytest.approx(expected)


@pytest.mark.parametrize("written", ["", "5", "s", "5 weeks", "-1s", "1e3s", "1s2s", None, []])
def test_an_invalid_duration_is_rejected_with_examples(written: object) -> None:
    with pytest.raises(UsageError, match=r'is not a valid duration: write .* "200ms"'):
        seconds(written)


@pytest.mark.parametrize(
    "written",
    [
        -1,
        -0.1,
        float("inf"),
        float("nan"),
        timedelta(seconds=-1),
        timedelta.max,
        "365001d",
        pytest.param(10**400, id="a number that is not a float"),
    ],
)
def test_a_duration_that_is_negative_or_too_long_is_rejected_with_the_limit(
    written: object,
) -> None:
    with pytest.raises(UsageError, match="must not be negative, and at most 365000d"):
        seconds(written)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=365_000)))
def test_a_timedelta_is_read_like_its_total_seconds(duration: timedelta) -> None:
    assert seconds(duration) == seconds(duration.total_seconds())


@pytest.mark.parametrize(
    ("configured", "shown"),
    [
        ("500ms", "0.5 s"),
        ("3s", "3 s"),
        ("1m", "60 s"),
        ("90s", "90 s"),
        ("10m", "10 min"),
        ("1.5h", "90 min"),
        ("1d", "24 h"),
        ("2d", "2 d"),
        ("30d", "30 d"),
        (2_592_001, "2592001 s"),
    ],
)
def test_a_configured_duration_is_shown_as_it_is_in_its_largest_unit(
    configured: str | int, shown: str
) -> None:
    assert exact_span(seconds(configured)) == shown
