"""Phrases in the findings of the rules for all services."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from eventmesh.contracts.fleet.facts import Reading


def reader_of(reading: Reading) -> str:
    """The service with its subscriptions, such as `orders (orders.remember)`."""
    return f"{reading.service} ({', '.join(reading.subscriptions)})"


def once(*names: str) -> tuple[str, ...]:
    """Each name once, in the order of their first occurrence."""
    return tuple(dict.fromkeys(names))


def listed(names: Sequence[str]) -> str:
    """The names joined by "and", each once."""
    return " and ".join(once(*names))


def suggestion(name: str, known: Iterable[str]) -> str:
    """`Did you mean …? ` with the most similar known name, or an empty string."""
    close = difflib.get_close_matches(name, sorted(set(known) - {name}), 1, cutoff=0.8)
    return f"Did you mean {close[0]}? " if close else ""
