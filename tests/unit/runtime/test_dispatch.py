from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from eventmesh.persistence.outbox import OutboxRow, bucket_of
from eventmesh.persistence.tables import BUCKETS
from eventmesh.runtime.relaying.dispatch import split_rejected, waves
from eventmesh.wire.envelope import Envelope

keys = st.none() | st.sampled_from("abc") | st.text(min_size=1)


def row(seq: int, key: str | None) -> OutboxRow:
    attributes = {"id": str(seq)} if key is None else {"id": str(seq), "partitionkey": key}
    return OutboxRow(seq, Envelope(attributes, b""), 0)


rows = st.lists(keys).map(lambda keys: [row(seq, key) for seq, key in enumerate(keys)])


@given(rows)
def test_every_row_is_in_exactly_one_wave(rows: list[OutboxRow]) -> None:
    assert sorted(each.seq for wave in waves(rows) for each in wave) == [r.seq for r in rows]


@given(rows)
def test_no_wave_has_two_messages_of_one_key(rows: list[OutboxRow]) -> None:
    for wave in waves(rows):
        keyed = [each.envelope.key for each in wave if each.envelope.key is not None]
        assert len(keyed) == len(set(keyed))


@given(rows)
def test_publishing_wave_by_wave_keeps_the_order_within_each_key(rows: list[OutboxRow]) -> None:
    sent = defaultdict(list)
    for wave in waves(rows):
        for each in wave:
            sent[each.envelope.key].append(each.seq)
    assert all(seqs == sorted(seqs) for seqs in sent.values())


@given(rows)
def test_there_are_as_many_waves_as_messages_of_the_busiest_key(rows: list[OutboxRow]) -> None:
    counts: dict[str | None, int] = defaultdict(int)
    for each in rows:
        counts[each.envelope.key] += 1
    unkeyed = min(counts.pop(None, 0), 1)
    result = waves(rows)
    assert len(result) == max([unkeyed, *counts.values()])
    assert all(result)


@given(rows, st.sets(st.integers(0, 20)))
def test_exactly_the_stored_messages_are_confirmed(
    rows: list[OutboxRow], numbers: set[int]
) -> None:
    confirmed, rejected = split_rejected(rows, {str(number) for number in numbers})
    assert [row.seq for row in confirmed] == [row.seq for row in rows if row.seq not in numbers]
    assert {row.seq for row in rejected} <= numbers


@given(rows, st.sets(st.integers(0, 20)))
def test_of_each_key_only_the_first_message_that_was_not_stored_counts_as_rejected(
    rows: list[OutboxRow], numbers: set[int]
) -> None:
    not_stored = [row for row in rows if row.seq in numbers]
    first_of_key = {row.envelope.key: row.seq for row in reversed(not_stored)}
    expected = [
        row.seq
        for row in not_stored
        if row.envelope.key is None or first_of_key[row.envelope.key] == row.seq
    ]
    _, rejected = split_rejected(rows, {str(number) for number in numbers})
    assert [row.seq for row in rejected] == expected


@given(keys, st.uuids().map(str), st.uuids().map(str))
def test_a_key_is_always_in_the_same_bucket(key: str | None, one: str, other: str) -> None:
    assert 0 <= bucket_of(key, one) < BUCKETS
    if key is not None:
        assert bucket_of(key, one) == bucket_of(key, other)


def test_messages_without_key_are_spread_over_all_buckets() -> None:
    assert {bucket_of(None, str(number)) for number in range(1000)} == set(range(BUCKETS))
