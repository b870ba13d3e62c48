"""What a consumer of an ordered subscription on Redis holds."""

from __future__ import annotations

from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.transports.redis.ordered.runs import Holdings, Run, Token
from eventmesh.wire.envelope import Envelope

A, B = b":a", b":b"


def added(holdings: Holdings, tag: bytes, lease: int, size: int) -> list[Delivery]:
    """The deliveries of a run that was just taken."""
    run = Run(tag, lease, size)
    deliveries = [Delivery(Envelope({}, b""), token=Token(run, place)) for place in range(size)]
    holdings.add(run, deliveries)
    return deliveries


def forget(holdings: Holdings, runs: list[Run]) -> None:
    for run in runs:
        holdings.forget(run, run.settled, is_over=run.is_over)


def test_a_key_can_be_taken_again_before_the_answer_to_its_settlement_was_read() -> None:
    holdings = Holdings()
    first = added(holdings, A, 1, 2)
    assert holdings.take(9) == first
    runs = holdings.settle([(each, DONE) for each in first])
    second = added(holdings, A, 2, 3)
    forget(holdings, runs)
    assert holdings.unsettled == 3
    assert holdings.take(9) == second
    forget(holdings, holdings.settle([(each, DONE) for each in second]))
    assert holdings.unsettled == 0
    assert holdings.runs() == []


def test_a_key_that_was_settled_while_redis_was_asked_is_not_kept() -> None:
    holdings = Holdings()
    [delivery] = added(holdings, A, 1, 1)
    added(holdings, B, 2, 1)
    forget(holdings, holdings.settle([(delivery, DONE)]))
    holdings.keep_only([A, B])
    assert [run.tag for run in holdings.runs()] == [B]
    assert holdings.unsettled == 1


def test_what_is_done_early_waits_for_what_is_before_it() -> None:
    holdings = Holdings()
    one, two, three = added(holdings, A, 1, 3)
    holdings.take(3)
    [run] = holdings.settle([(two, DONE)])
    assert (run.settled, run.is_over) == (0, False)
    [run] = holdings.settle([(one, DONE)])
    assert run.settled == 2
    forget(holdings, [run])
    forget(holdings, [run])
    assert holdings.unsettled == 1
    [run] = holdings.settle([(three, DONE)])
    assert run.is_over


def test_a_failure_takes_back_what_comes_after_it() -> None:
    holdings = Holdings()
    one, two, *_ = added(holdings, A, 1, 4)
    added(holdings, B, 1, 1)
    holdings.take(2)
    [run] = holdings.settle([(two, Dead("later"))])
    assert (run.settled, run.is_over) == (0, False)
    [run] = holdings.settle([(one, RetryAfter(1.0)), (two, DONE)])
    assert run.failed == (one, RetryAfter(1.0))
    forget(holdings, [run])
    assert holdings.unsettled == 1
    assert [each.token.run.tag for each in holdings.take(9)] == [B]
    assert holdings.settle([(two, DONE)]) == []


def test_what_another_consumer_received_is_skipped() -> None:
    theirs = Holdings()
    [delivery] = added(theirs, A, 1, 1)
    theirs.take(1)
    assert Holdings().settle([(delivery, DONE)]) == []


def test_keys_that_were_lost_are_forgotten() -> None:
    holdings = Holdings()
    added(holdings, A, 1, 2)
    [kept] = added(holdings, B, 1, 1)
    holdings.keep_only([B])
    assert holdings.unsettled == 1
    assert holdings.take(9) == [kept]
