"""Planning acknowledgements that settle the finished deliveries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventmesh.transports.rabbitmq.settlement import plan_acknowledgements

tags = st.sets(st.integers(1, 60)).map(sorted)


@given(tags, st.data())
def test_acknowledgements_cover_exactly_the_finished_deliveries(
    outstanding: list[int], data: st.DataObject
) -> None:
    done = data.draw(st.sets(st.sampled_from(outstanding))) if outstanding else set()
    acknowledged: list[int] = []
    left = list(outstanding)
    for tag, multiple in plan_acknowledgements(outstanding, done):
        covered = [each for each in left if each == tag or (multiple and each < tag)]
        acknowledged += covered
        left = [each for each in left if each not in covered]
    assert sorted(acknowledged) == sorted(done)


@given(tags.filter(bool))
def test_one_acknowledgement_settles_all_deliveries_if_all_are_finished(
    outstanding: list[int],
) -> None:
    assert plan_acknowledgements(outstanding, set(outstanding)) == [(outstanding[-1], True)]
