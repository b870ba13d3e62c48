from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.errors import Conflict, Reject, UndeclaredMessage, UnreadableMessage, UsageError
from eventmesh.runtime.declaring.retry import Retry, constant, decide, describe, exponential
from eventmesh.transports.outcome import Dead, RetryAfter

delays = st.floats(min_value=0.001, max_value=3600)
factors = st.floats(min_value=1, max_value=10)
chances = st.floats(min_value=0, max_value=1, exclude_max=True)
jitters = st.floats(min_value=0, max_value=1)


def raised(error: Exception) -> Exception:
    """The error with a traceback, as a handler's error has one."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_an_exponential_back_off_doubles_by_default() -> None:
    backoff = exponential("200ms", cap="1m")
    assert [backoff(attempt) for attempt in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert backoff(100) == 60


@given(delays, delays, factors, st.integers(1, 10_000))
def test_an_exponential_back_off_never_shrinks_and_never_exceeds_its_cap(
    first: float, cap: float, factor: float, attempt: int
) -> None:
    backoff = exponential(first, cap=cap, factor=factor)
    assert backoff(1) == min(first, cap)
    assert 0 <= backoff(attempt) <= backoff(attempt + 1) <= cap


@pytest.mark.parametrize("attempt", [1, 2, 5_000])
def test_a_back_off_that_starts_at_zero_stays_at_zero(attempt: int) -> None:
    assert exponential(0)(attempt) == 0


@pytest.mark.parametrize("factor", [0.0, 0.99, -2.0, float("nan"), "2"])
def test_a_back_off_that_shrinks_is_rejected(factor: Any) -> None:
    with pytest.raises(UsageError, match="would shrink the delays: use 1 or more"):
        exponential("1s", factor=factor)


def test_a_back_off_with_an_invalid_duration_is_rejected_when_it_is_declared() -> None:
    with pytest.raises(UsageError, match="is not a valid duration"):
        exponential("soon")
    with pytest.raises(UsageError, match="is not a valid duration"):
        constant("later")


@given(delays, st.integers(1, 10_000))
def test_a_constant_back_off_is_constant(delay: float, attempt: int) -> None:
    assert constant(delay)(attempt) == delay


@pytest.mark.parametrize("attempts", [0, -1])
def test_fewer_than_one_attempt_is_rejected(attempts: int) -> None:
    with pytest.raises(UsageError, match=rf"attempts={attempts}.*the first call counts"):
        Retry(attempts=attempts)


@pytest.mark.parametrize("jitter", [-0.1, 1.1, float("nan")])
def test_jitter_outside_0_to_1_is_rejected(jitter: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        Retry(jitter=jitter)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"attempts": "3"}, r"attempts='3'\): use 1 or more"),
        ({"attempts": True}, r"attempts=True\): use 1 or more"),
        ({"per_error": [3]}, r"write a dict of exception classes and the Retry for each"),
        ({"backoff": "5s"}, r"write constant\('5s'\), or exponential\('5s'\)"),
        ({"jitter": "little"}, r"jitter='little'\): use a share"),
        ({"give_up_on": ValueError}, r"write a tuple of exception classes, such as"),
        ({"give_up_on": ("ValueError",)}, r"write a tuple of exception classes, such as"),
        ({"per_error": {ValueError: 3}}, r"write an exception class and the Retry for it"),
    ],
    ids=["attempts", "a bool", "list", "backoff", "jitter", "one error", "no error", "per error"],
)
def test_what_cannot_be_a_policy_is_rejected_when_it_is_written(
    option: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Retry(**option)


@given(delays, jitters, chances)
def test_jitter_shortens_a_delay_by_its_share_at_most(
    delay: float, jitter: float, chance: float
) -> None:
    policy = Retry(backoff=constant(delay), jitter=jitter)
    outcome = decide(policy, 1, ValueError(), chance)
    assert isinstance(outcome, RetryAfter)
    assert delay * (1 - jitter) <= outcome.delay <= delay


@given(st.integers(1, 50), chances)
def test_a_message_that_always_fails_is_dead_lettered_after_its_last_attempt(
    attempts: int, chance: float
) -> None:
    policy = Retry(attempts=attempts)
    outcomes = [decide(policy, n, ValueError("no"), chance) for n in range(1, attempts + 1)]
    assert all(isinstance(outcome, RetryAfter) for outcome in outcomes[:-1])
    assert isinstance(outcomes[-1], Dead)


def test_a_failure_after_the_last_attempt_is_dead_lettered() -> None:
    assert isinstance(decide(Retry(attempts=2), 7, ValueError(), 0.0), Dead)


def test_the_reason_of_a_dead_letter_has_the_number_of_attempts_and_the_error() -> None:
    assert decide(Retry(attempts=1), 1, ValueError("no"), 0).reason == (
        "failed 1 time: ValueError: no"
    )
    assert decide(Retry(attempts=3), 3, ValueError("no"), 0).reason == (
        "failed 3 times: ValueError: no"
    )


@pytest.mark.parametrize("error", [Reject("bad order"), UnreadableMessage("garbage")])
def test_a_rejected_or_unreadable_message_is_dead_lettered_at_once(
    error: Exception,
) -> None:
    assert decide(Retry(attempts=9), 1, error, 0).reason == str(error)


@pytest.mark.parametrize("error", [UsageError("wrong"), UndeclaredMessage("undeclared")])
def test_a_misuse_of_the_api_is_not_retried(error: Exception) -> None:
    outcome = decide(Retry(attempts=9), 1, error, 0)
    assert outcome.reason == f"the handler misuses the API: {error}"


def test_errors_in_give_up_on_and_their_subclasses_are_dead_lettered_at_once() -> None:
    policy = Retry(attempts=9, give_up_on=(LookupError,))
    assert decide(policy, 1, KeyError("x"), 0).reason == "KeyError: 'x'"
    assert isinstance(decide(policy, 1, ValueError(), 0), RetryAfter)


def test_a_conflict_is_retried() -> None:
    assert isinstance(decide(Retry(), 1, Conflict("changed"), 0), RetryAfter)


@given(st.integers(1, 20), chances)
def test_the_decision_is_deterministic(attempt: int, chance: float) -> None:
    error = ValueError("no")
    assert decide(Retry(), attempt, error, chance) == decide(Retry(), attempt, error, chance)


def test_a_dead_letter_contains_the_traceback() -> None:
    outcome = decide(Retry(attempts=1), 1, raised(ValueError("no")), 0)
    assert outcome.error.startswith("Traceback")
    assert "in raised" in outcome.error
    assert outcome.error.rstrip().endswith("ValueError: no")


def test_a_very_long_error_keeps_its_beginning_and_its_end() -> None:
    text = describe(raised(ValueError("a" * 20_000 + " the end")))
    assert len(text) < 8_100
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("the end")
    assert "\n…\n" in text


def test_an_error_of_megabytes_is_not_read_as_a_whole() -> None:
    error = ValueError("lost https://h/?data=" + "a" * 20_000_000 + " again")
    began_at = time.process_time()
    outcome = decide(Retry(attempts=1), 1, error, 0.5)
    assert time.process_time() - began_at < 5  # usually 0.1 s
    assert isinstance(outcome, Dead)
    assert outcome.reason.endswith(" again")


def test_a_retry_policy_may_differ_by_error_type() -> None:
    policy = Retry(attempts=2, per_error={KeyError: Retry(attempts=9), LookupError: Retry(1)})
    assert isinstance(decide(policy, 8, KeyError("x"), 0), RetryAfter)
    assert isinstance(decide(policy, 9, KeyError("x"), 0), Dead)
    assert isinstance(decide(policy, 1, IndexError("x"), 0), Dead)
    assert isinstance(decide(policy, 1, ValueError("x"), 0), RetryAfter)
    assert isinstance(decide(policy, 2, ValueError("x"), 0), Dead)


def test_the_reason_does_not_include_the_notes_of_an_error() -> None:
    error = ValueError("no such branch")
    error.add_note("a note that a library added")
    outcome = decide(Retry(attempts=1), 1, error, 0)
    assert isinstance(outcome, Dead)
    assert outcome.reason == "failed 1 time: ValueError: no such branch"
    assert "a note that a library added" in outcome.error


@pytest.mark.parametrize("returned", [None, "soon", [1]])
def test_a_message_whose_back_off_fails_is_dead_lettered_with_both_errors(
    returned: Any,
) -> None:
    policy = Retry(backoff=lambda _attempt: returned)
    outcome = decide(policy, 1, ValueError("no such branch"), 0.5)
    assert isinstance(outcome, Dead)
    assert outcome.reason.startswith("the back-off of its Retry failed: TypeError")
    assert outcome.reason.endswith("ValueError: no such branch")


def test_a_rejection_that_cannot_be_shown_is_dead_lettered() -> None:
    class Declined(Reject):
        def __str__(self) -> str:
            raise AttributeError("nope")

    outcome = decide(Retry(), 1, raised(Declined("no")), 0)
    assert isinstance(outcome, Dead)
    assert outcome.reason == "<exception str() failed>"
