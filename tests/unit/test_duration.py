from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.duration import seconds
from eventmesh.errors import UsageError


@pytest.mark.parametrize(
    ("written", "meant"),
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
def test_a_duration_is_read_as_people_write_it(written: object, meant: float) -> None:
    assert seconds(written) == pytest.approx(meant)


@pytest.mark.parametrize("written", ["", "5", "s", "5 weeks", "-1s", "1e3s", "1s2s", None, []])
def test_what_is_no_duration_is_refused_with_examples(written: object) -> None:
    with pytest.raises(UsageError, match=r'is not a valid duration: write .* "200ms"'):
        seconds(written)


@pytest.mark.parametrize("written", [-1, -0.1, float("inf"), float("nan"), timedelta(seconds=-1)])
def test_a_duration_is_neither_negative_nor_endless(written: object) -> None:
    with pytest.raises(UsageError, match="finite and not negative"):
        seconds(written)


@given(st.timedeltas(min_value=timedelta(0)))
def test_a_timedelta_and_its_seconds_mean_the_same(duration: timedelta) -> None:
    assert seconds(duration) == seconds(duration.total_seconds())
