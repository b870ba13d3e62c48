"""How much work a search or a proof may do, counted in steps and never in seconds.

Deciding whether one schema contains another can take exponential time, so every search and every
proof stops somewhere. If it stopped after so many seconds, the same pair of schemas would be
Compatible on a fast machine and Unknown on a busy one. So we count: each piece of work spends as
many steps as it roughly costs, one step being about four microseconds on the machine where the
prices were set, and the search ends when its budget is spent. Example: a proof has 80,000 steps;
looking at one pair of subschemas spends 10, reading one character in an automaton spends 1.

For the same reason nothing here may depend on the order of a set of strings, which differs from
process to process, or on what a cache holds: a remembered answer costs as much as a new one, or
nothing in both cases.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic_core import to_json

Answer = TypeVar("Answer")


class Undecided(Exception):
    """A question about schemas cannot be answered; the message says why."""


class StepBudget:
    """A number of steps that one search or proof may spend."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Take these steps from the budget. Raises Undecided once more is spent than there was."""
        self._left -= steps
        if self._left < 0:
            raise Undecided("the step budget is spent")


def price_of(document: Any) -> int:
    """The steps that validating a document costs: it grows with its size."""
    return 10 + len(to_json(document)) // 40


def with_whole_stack(question: Callable[[], Answer]) -> Answer:
    """The answer to a question, whatever is left of the caller's stack.

    Recursion here is bounded by depths that fit into Python's default recursion limit, but not
    beside a caller that has used up most of it. A new thread begins with an empty stack.
    """
    try:
        return question()
    except RecursionError:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(question).result()
