"""When a failed message is retried, and when it becomes a dead letter.

The decision is a pure function of the policy, the number of the attempt and the error. With
`Retry(attempts=3, backoff=exponential("1s"), jitter=0)`, a handler that always fails is called at
0, 1 and 3 seconds, and then the message is a dead letter.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from eventmesh.duration import Duration, seconds
from eventmesh.error_text import message_of, type_and_message
from eventmesh.errors import Reject, UnreadableMessage, UsageError
from eventmesh.redact import redact_ends
from eventmesh.transports.outcome import MOST_CHARACTERS, Dead, Outcome, RetryAfter, limited

Backoff = Callable[[int], float]
"""From the number of the attempt that failed, counted from 1, to the seconds before the next."""


def exponential(first: Duration, *, cap: Duration = "5m", factor: float = 2.0) -> Backoff:
    """`first * factor ** (attempt - 1)`, at most `cap`."""
    start, most = seconds(first), seconds(cap)
    if not isinstance(factor, int | float) or not factor >= 1:
        raise UsageError(f"exponential(factor={factor!r}) would shrink the delays: use 1 or more.")

    def backoff(attempt: int) -> float:
        try:
            return min(start * factor ** (attempt - 1), most)
        except OverflowError:
            return most if start else 0.0

    return backoff


def constant(delay: Duration) -> Backoff:
    """The same delay before every attempt."""
    wait = seconds(delay)
    return lambda _attempt: wait


DEFAULT_BACKOFF = exponential("200ms", cap="1m")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a failed message is retried before it becomes a dead letter.

    `attempts` counts calls of the handler, the first one included: with `attempts=3`, a message at
    which the handler always fails is a dead letter after three calls. Two things are not counted. A
    call that ended with an error of the database, in a transaction shared with messages before it,
    is repeated alone at once, because one of those may have caused it; so is each message of a
    failed call of a batch handler. And a message is delivered again if its worker stopped or lost a
    server before the message was settled.

    Each delay is shortened by a random share of up to `jitter` (0 to 1), so that messages that
    failed together do not come back together. Errors of the types in `give_up_on` are never
    retried. `per_error` gives errors of a type a policy of their own; the first type that matches
    counts: `Retry(per_error={RateLimited: Retry(30, constant("10s"))})`. Its `attempts` count all
    calls for the message, too, whatever errors they ended with.
    """

    attempts: int = 8
    backoff: Backoff = DEFAULT_BACKOFF
    jitter: float = 0.25
    give_up_on: tuple[type[Exception], ...] = ()
    per_error: Mapping[type[Exception], Retry] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        is_number = isinstance(self.attempts, int) and not isinstance(self.attempts, bool)
        if not is_number or self.attempts < 1:
            raise UsageError(
                f"Retry(attempts={self.attempts!r}): use 1 or more; the first call counts."
            )
        if not callable(self.backoff):
            raise UsageError(
                f"Retry(backoff={self.backoff!r}): write constant({self.backoff!r}), or "
                f"exponential({self.backoff!r}) for delays that grow."
            )
        if not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise UsageError(f"Retry(jitter={self.jitter!r}): use a share between 0 and 1.")
        if not isinstance(self.give_up_on, tuple) or not all(map(_is_error, self.give_up_on)):
            raise UsageError(
                f"Retry(give_up_on={self.give_up_on!r}): write a tuple of exception classes, such "
                f"as (ValueError,)."
            )
        if not isinstance(self.per_error, Mapping):
            raise UsageError(
                f"Retry(per_error={self.per_error!r}): write a dict of exception classes and the "
                f"Retry for each."
            )
        for kind, policy in self.per_error.items():
            if not _is_error(kind) or not isinstance(policy, Retry):
                raise UsageError(
                    f"Retry(per_error={{{kind!r}: {policy!r}}}): write an exception class and the "
                    f"Retry for it."
                )

    def of(self, error: Exception) -> Retry:
        """The policy for this error."""
        for kind, policy in self.per_error.items():
            if isinstance(error, kind):
                return policy
        return self


def checked_retry(retry: object, where: str) -> Retry:
    """The policy; UsageError for what is not one."""
    if not isinstance(retry, Retry):
        raise UsageError(f"{where} has retry={retry!r}: write a policy, such as Retry(attempts=3).")
    return retry


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def decide(policy: Retry, attempt: int, error: Exception, chance: float) -> Outcome:
    """What becomes of a delivery whose handler raised `error`. `chance` is a random number in
    [0, 1), for the jitter."""
    policy = policy.of(error)
    match error:
        case Reject() | UnreadableMessage():
            reason = message_of(error)
        case UsageError():
            reason = f"the handler misuses the API: {message_of(error)}"
        case _ if isinstance(error, policy.give_up_on):
            reason = summarize(error)
        case _ if attempt >= policy.attempts:
            plural = "s" if attempt > 1 else ""
            reason = f"failed {attempt} time{plural}: {summarize(error)}"
        case _:
            try:
                return RetryAfter(policy.backoff(attempt) * (1 - policy.jitter * chance))
            except Exception as mistake:  # noqa: BLE001  # a user's back-off may raise anything
                reason = (
                    f"the back-off of its Retry failed: {summarize(mistake)}; "
                    f"the handler: {summarize(error)}"
                )
    return Dead(reason, describe(error))


def summarize(error: Exception) -> str:
    """Type and message, also of an error whose `__str__` fails."""
    return _shown(type_and_message(error))


def describe(error: Exception) -> str:
    """The error with its traceback, as a dead letter keeps it."""
    return _shown("".join(traceback.format_exception(error)))


def _shown(text: str) -> str:
    """The text without passwords, limited. What is far from both ends will not be shown, so that
    megabytes of it need not be read."""
    return limited(redact_ends(text, 2 * MOST_CHARACTERS))
