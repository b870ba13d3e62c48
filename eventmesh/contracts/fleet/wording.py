"""How the rules of the mesh say things."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from eventmesh.contracts.fleet.facts import Reading


def reader_of(reading: Reading) -> str:
    """The service, with the subscriptions that read."""
    return f"{reading.service} ({', '.join(reading.subscriptions)})"


def once(*names: str) -> tuple[str, ...]:
    """Each name once, in the order in which they first come."""
    return tuple(dict.fromkeys(names))


def listed(names: Sequence[str]) -> str:
    """The names as a sentence has them."""
    return " and ".join(once(*names))


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question whether one of the known names is meant, if one is like this; else nothing."""
    close = difflib.get_close_matches(name, sorted(set(known) - {name}), 1, cutoff=0.8)
    return f"Did you mean {close[0]}? " if close else ""
