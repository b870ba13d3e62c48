"""Making a witness smaller while it stays one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from eventmesh.compat.budget import StepBudget, Undecided, price_of


def shrunk(document: Any, holds: Callable[[Any], bool], budget: StepBudget) -> Any:
    """The smallest document that is found, step by step, of which `holds` is still true.

    Each document that `holds` is asked about spends from the budget; once that is spent, the
    smallest one so far is the answer.
    """
    smaller = True
    with suppress(Undecided):
        while smaller:
            smaller = False
            for candidate in _smaller(document):
                budget.spend(price_of(candidate))
                if holds(candidate):
                    document, smaller = candidate, True
                    break
    return document


def _smaller(value: Any) -> Iterator[Any]:
    """Values a step simpler: less of it first, then simpler parts."""
    if isinstance(value, dict):
        names = list(value)
        if len(names) > 3:
            yield {name: value[name] for name in names[: len(names) // 2]}
            yield {name: value[name] for name in names[len(names) // 2 :]}
        for name in value:
            yield {other: part for other, part in value.items() if other != name}
        for name, part in value.items():
            for simpler in _smaller(part):
                yield {**value, name: simpler}
    elif isinstance(value, list):
        if len(value) > 3:
            yield value[: len(value) // 2]
        for place in range(len(value)):
            yield [*value[:place], *value[place + 1 :]]
        for place, part in enumerate(value):
            for simpler in _smaller(part):
                yield [*value[:place], simpler, *value[place + 1 :]]
    elif isinstance(value, str):
        if value:
            yield ""
            if len(value) > 1:
                yield from (value[: len(value) // 2], value[:-1], value[1:])
            if set(value) != {"a"} and len(value) < 200:
                yield "a" * len(value)
    elif isinstance(value, float) and not value.is_integer():
        yield from (int(value), round(value, 1)) if round(value, 1) != value else (int(value),)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1:
        yield from (0, 1, value // 2 if value > 0 else -(-value // 2))
