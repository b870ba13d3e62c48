from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventmesh.runtime.consuming.pacing import next_size

MOST, TIME = 100, 0.05

sizes = st.integers(1, MOST)
times = st.floats(min_value=0, max_value=1)


@given(sizes, st.integers(0, MOST), times)
def test_the_size_stays_between_one_and_the_maximum(size: int, count: int, took: float) -> None:
    assert 1 <= next_size(size, count, took, MOST, TIME) <= MOST


@given(sizes, st.integers(0, MOST), times.filter(lambda took: took > TIME))
def test_a_batch_that_took_too_long_reduces_the_size_by_half_at_most(
    size: int, count: int, took: float
) -> None:
    count = min(size, count)
    assert max(size // 2, 1) <= next_size(size, count, took, MOST, TIME) <= max(size - 1, 1)


@given(sizes, times.filter(lambda took: took <= TIME))
def test_a_full_batch_in_time_increases_the_size_to_its_double_at_most(
    size: int, took: float
) -> None:
    assert size <= next_size(size, size, took, MOST, TIME) <= min(size * 2, MOST)


@given(sizes, st.floats(min_value=0.0001, max_value=TIME))
def test_with_a_constant_time_per_message_the_size_converges_to_what_fits(
    size: int, each: float
) -> None:
    for _ in range(20):
        size = next_size(size, size, size * each, MOST, TIME)
    assert size * each <= TIME
    assert size == MOST or (size + 1) * each > TIME * 0.999


@given(sizes.filter(lambda size: size > 1), times.filter(lambda took: took <= TIME))
def test_a_batch_that_was_not_full_does_not_change_the_size(size: int, took: float) -> None:
    assert next_size(size, size - 1, took, MOST, TIME) == size


def test_seven_fast_batches_increase_the_size_from_1_to_100() -> None:
    size, batches = 1, 0
    while size < MOST:
        size, batches = next_size(size, size, 0.0, MOST, TIME), batches + 1
    assert batches == 7
