"""Sample messages of a version: what its model writes, kept when the model is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from eventmesh.contracts.message import Message

MOST = 8
_TRIED = 60


def samples_of(model: type[Message], writer: dict[str, Any]) -> tuple[Any, ...]:
    """A few messages that this model, whose schema is `writer`, writes, the same ones each time:
    the smallest, the largest, and some on the bounds of what is allowed."""
    from eventmesh.compat import documents
    from eventmesh.compat.models import written

    found = list(_written(model, documents(writer, limit=_TRIED), writer))
    more = written(model, limit=_TRIED) if len(found) < MOST else []
    found += [each for each in _written(model, more, writer) if each not in found]
    # A model that computes a field, or reads another name than it writes, repeats nothing exactly.
    exact = [document for document, same in found if same]
    kept = exact if len(exact) > 1 else [document for document, _ in found]
    return tuple(_some(kept or more))


def _written(
    model: type[Message], documents: Sequence[Any], writer: dict[str, Any]
) -> Iterator[tuple[Any, bool]]:
    """What the model makes of these documents and can read again, each once, and whether that is
    the document itself."""
    has_sets = '"uniqueItems"' in json.dumps(writer)
    seen: set[str] = set()
    for document in documents:
        try:
            text = _rewritten(model, json.dumps(document))
            again = _rewritten(model, text)
        except Exception:  # noqa: BLE001, S112  # whatever a user's validator raises, it says no
            continue
        value, order = json.loads(text), _ordered if has_sets else _as_it_is
        if order(json.loads(again)) != order(value) or text in seen:
            continue
        seen.add(text)
        same = order(value) == order(document)
        # A set is written in another order by each process: that of the document stays.
        yield document if same else value, same


def _rewritten(model: type[Message], text: str) -> str:
    return model.model_validate_json(text).model_dump_json(by_alias=True, warnings=False)


def _as_it_is(value: Any) -> Any:
    return value


def _ordered(value: Any) -> Any:
    """With all lists in one order, as if each were a set."""
    if isinstance(value, dict):
        return {name: _ordered(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_ordered, value), key=json.dumps)
    return value


def _some(documents: Sequence[Any]) -> Iterator[Any]:
    """The first, the longest, and others at even distances."""
    if len(documents) <= MOST:
        yield from documents
        return
    longest = max(range(len(documents)), key=lambda number: len(json.dumps(documents[number])))
    others = [number for number in range(1, len(documents)) if number != longest]
    step = len(others) / (MOST - 2)
    chosen = {0, longest, *(others[int(count * step)] for count in range(MOST - 2))}
    for number in sorted(chosen):
        yield documents[number]
