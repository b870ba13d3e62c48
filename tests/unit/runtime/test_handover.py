"""What a relay may publish without reading it from the outbox first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from eventmesh.persistence.outbox import OutboxRow, Outgoing, Stored
from eventmesh.runtime.relaying.handover import CAPACITY, Handover
from eventmesh.wire.envelope import Envelope


def stored(number: int, key: str = "a", delay: float = 0.0) -> Stored:
    headers = {"id": str(number), "type": "orders.order_placed", "partitionkey": key}
    return Stored(number, Outgoing(Envelope(headers, b""), delay))


def row(number: int) -> OutboxRow:
    return OutboxRow(number, stored(number).outgoing.envelope, 0)


def trusting(watermark: int = 0) -> Handover:
    """One whose relay has read the outbox, up to this number, and found nothing rejected."""
    handover = Handover()
    handover.may_have_rejected = False
    handover.close_through(watermark)
    return handover


def taken(handover: Handover) -> list[int] | None:
    found = handover.take()
    return None if found is None else [each.seq for each in found.rows]


class TestWhatIsTaken:
    def test_rows_right_after_the_watermark_in_the_order_of_their_numbers(self) -> None:
        handover = trusting(8)
        handover.put([stored(10)])
        handover.put([stored(9)])
        assert taken(handover) == [9, 10]
        assert taken(handover) == []

    def test_nothing_while_a_number_below_is_unknown(self) -> None:
        """It may be that of an older message of the key, which another process has committed."""
        handover = trusting(8)
        handover.put([stored(10)])
        assert taken(handover) is None

    def test_rows_after_others_that_were_read_and_relayed(self) -> None:
        handover = trusting(8)
        handover.close([row(9), row(11)])
        handover.put([stored(10), stored(12)])
        assert taken(handover) == [10, 12]

    def test_no_row_that_was_read_and_relayed_before_it_was_handed_over(self) -> None:
        handover = trusting(8)
        handover.close([row(9), row(11)])
        handover.put([stored(8), stored(9), stored(11)])
        assert taken(handover) == []

    def test_a_delayed_row_is_left_to_the_outbox_and_holds_back_nobody(self) -> None:
        handover = trusting(8)
        handover.put([stored(9, delay=30.0), stored(10, delay=20.0), stored(11)])
        found = handover.take()
        assert found is not None
        assert [each.seq for each in found.rows] == [11]
        assert found.next_due_in == 20.0

    def test_nothing_while_there_may_be_rejected_messages(self) -> None:
        handover = trusting(8)
        handover.may_have_rejected = True
        handover.put([stored(9)])
        assert taken(handover) is None

    def test_nothing_of_more_than_it_has_room_for(self) -> None:
        handover = trusting()
        handover.put([stored(number) for number in range(1, CAPACITY + 1)])
        handover.put([stored(CAPACITY + 1)])
        assert not handover.is_empty
        assert taken(handover) is None
        assert handover.is_empty

    def test_nothing_after_a_reset_until_the_watermark_has_come_there(self) -> None:
        handover = trusting(8)
        handover.put([stored(9)])
        handover.reset()
        assert handover.is_empty
        handover.may_have_rejected = False
        handover.put([stored(10)])
        assert taken(handover) is None
        handover.close_through(10)
        handover.put([stored(11)])
        assert taken(handover) == [11]


@dataclass
class Outbox:
    """An outbox with several writers, of which one hands over its rows, and a relay."""

    handover: Handover = field(default_factory=trusting)
    next_number: int = 1
    open: dict[int, str] = field(default_factory=dict)
    """Numbers of transactions that go on, with the keys of their messages."""
    unrelayed: dict[int, str] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)
    late: list[Stored] = field(default_factory=list)
    """Committed by this process, and not handed over yet."""

    def begin(self, key: str, *, own: bool) -> None:
        # One transaction with messages of a key at a time: only then is there an order to keep.
        if key not in self.open.values():
            self.open[self.next_number] = key
            self.own |= {self.next_number} if own else set()
            self.next_number += 1

    def end(self, choice: int, *, commits: bool) -> None:
        if self.open:
            number = sorted(self.open)[choice % len(self.open)]
            key = self.open.pop(number)
            if commits:
                self.unrelayed[number] = key
                self.late += [stored(number, key)] if number in self.own else []

    def hand_over(self, choice: int) -> None:
        if self.late:
            self.handover.put([self.late.pop(choice % len(self.late))])

    def read(self, limit: int) -> None:
        self.publish(sorted(self.unrelayed)[:limit])
        if not self.unrelayed:
            self.handover.close_through(min(self.open, default=self.next_number) - 1)

    def take(self) -> None:
        found = self.handover.take()
        if found is None:
            self.read(3)
        else:
            self.publish([each.seq for each in found.rows])

    def publish(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            key = self.unrelayed.pop(number)  # an error if it was published before
            older = [each for each in self.unrelayed if each < number]
            assert key not in [self.unrelayed[each] for each in older], "an older one is waiting"
        self.handover.close([row(number) for number in numbers])


ACTIONS = {
    "another process begins a transaction": lambda box, key, _: box.begin(key, own=False),
    "this process begins a transaction": lambda box, key, _: box.begin(key, own=True),
    "the oldest transaction is committed": lambda box, *_: box.end(0, commits=True),
    "another transaction is committed": lambda box, _, choice: box.end(choice, commits=True),
    "a transaction is rolled back": lambda box, _, choice: box.end(choice, commits=False),
    "rows are handed over": lambda box, _, choice: box.hand_over(choice),
    "the relay takes rows": lambda box, *_: box.take(),
    "the relay reads a few rows": lambda box, _, choice: box.read(choice),
}


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(ACTIONS)), st.sampled_from("aab"), st.integers(0, 3)),
        min_size=20,
        max_size=60,
    )
)
def test_whatever_others_commit_no_row_overtakes_an_older_one_of_its_key(
    story: list[tuple[str, str, int]],
) -> None:
    box = Outbox()
    for action, key, choice in story:
        ACTIONS[action](box, key, choice)
    box.read(100)
    assert not box.unrelayed
