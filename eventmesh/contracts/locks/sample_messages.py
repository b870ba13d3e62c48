"""Making example messages for a lock file.

They are messages that the model really accepted and wrote, boundary values among them. Later they
are used to test new models and upcasters, when the code of the old model no longer exists. The
same model has the same samples in every process, or lock files would change for no reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from eventmesh import compat
from eventmesh.compat.pydantic_models.comparison import written

MAX_SAMPLES = 8
_CANDIDATES = 60


def samples_of(model: type[BaseModel], writer: dict[str, Any]) -> tuple[Any, ...]:
    """Up to 8 messages that this model, whose schema is `writer`, writes.

    They include the smallest, the largest, and some at the bounds of what is allowed.
    """
    found = list(_written(model, compat.documents(writer, limit=_CANDIDATES), writer))
    more = written(model, limit=_CANDIDATES) if len(found) < MAX_SAMPLES else []
    found += [each for each in _written(model, more, writer) if each not in found]
    # A model that computes a field, or reads and writes it by different names, changes every
    # document. For the others, documents that stay the same are the better samples.
    exact = [document for document, same in found if same]
    kept = exact if len(exact) > 1 else [document for document, _ in found]
    return tuple(_choose(kept or more))


def _written(
    model: type[BaseModel], documents: Sequence[Any], writer: dict[str, Any]
) -> Iterator[tuple[Any, bool]]:
    """What the model writes after reading these documents, if it can read the result again.

    Each comes once, with whether it equals the document that was read.
    """
    has_sets = '"uniqueItems"' in json.dumps(writer)
    seen: set[str] = set()
    for document in documents:
        try:
            text = _rewritten(model, json.dumps(document))
            again = _rewritten(model, text)
        except Exception:  # noqa: BLE001, S112  # a user's validator may raise anything
            continue
        value, order = json.loads(text), _sorted if has_sets else _unchanged
        if order(json.loads(again)) != order(value) or text in seen:
            continue
        seen.add(text)
        same = order(value) == order(document)
        # Each process writes a set in another order, so the order of the document is kept.
        yield document if same else value, same


def _rewritten(model: type[BaseModel], text: str) -> str:
    return model.model_validate_json(text).model_dump_json(by_alias=True, warnings=False)


def _unchanged(value: Any) -> Any:
    return value


def _sorted(value: Any) -> Any:
    """The value with every list sorted, as if it were a set."""
    if isinstance(value, dict):
        return {name: _sorted(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_sorted, value), key=json.dumps)
    return value


def _choose(documents: Sequence[Any]) -> Iterator[Any]:
    """The first, the longest, and others at even distances, in order."""
    if len(documents) <= MAX_SAMPLES:
        yield from documents
        return
    longest = max(range(len(documents)), key=lambda number: len(json.dumps(documents[number])))
    others = [number for number in range(1, len(documents)) if number != longest]
    step = len(others) / (MAX_SAMPLES - 2)
    chosen = {0, longest, *(others[int(count * step)] for count in range(MAX_SAMPLES - 2))}
    for number in sorted(chosen):
        yield documents[number]
