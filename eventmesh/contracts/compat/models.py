"""Whether a pydantic model reads everything that a writer may write: what the model does is true.

A verdict is `Compatible` only if the schemas prove it and the model itself has read every document
that was tried: those on the bounds of both schemas, and all samples. It is `Breaking` only with a
document that the model has refused and the writer may write.

What a schema cannot say, a proof cannot see: validators, and serializers that do not say what they
write. Where the *reader* has one, more documents are tried, with the values that its code mentions;
if it takes them all, that is `Compatible`, with a change EM022 that says so. Where the *writer* had
one when it was frozen, its values are taken from its samples and from the reader (if the
reader's is still the same); what is refused for another value is no witness, and leads to
`Unknown`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from eventmesh.contracts.compat import accepts, compare, documents
from eventmesh.contracts.compat.model_checks import functions_of, interests
from eventmesh.contracts.compat.model_documents import (
    Path,
    Pools,
    as_written,
    at,
    nodes,
    replaced,
    spots,
    varied,
    within,
)
from eventmesh.contracts.compat.model_schemas import (
    CHECKED,
    DECIMAL,
    plain,
    reader_schema,
    tidy,
    writer_schema,
)
from eventmesh.contracts.compat.shrink import shrunk
from eventmesh.contracts.compat.verdict import Breaking, Change, Compatible, Unknown, Verdict

__all__ = ["compare_model", "compare_schemas", "reader_schema", "writer_schema", "written"]

Cast = Callable[[dict[str, Any]], dict[str, Any]]

_VALIDATORS_ERRORS = {"value_error", "assertion_error"}
_MOST = 200
"""Documents that are tried, of each of the few ways to make them."""
_KEYWORDS = {
    "properties",
    "anyOf",
    "allOf",
    "oneOf",
    "$defs",
    "prefixItems",
    "additionalProperties",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a reader does not take a document, and the places that are wrong with it."""

    reason: str
    places: tuple[tuple[Path, str], ...] = ()
    """Paths with the type of pydantic's error; none where it is not known."""


Try = Callable[[Any], Refusal | None]


def compare_model(
    writer: dict[str, Any],
    reader: type[BaseModel],
    *,
    cast: Cast | None = None,
    samples: Sequence[Any] = (),
    writer_model: type[BaseModel] | None = None,
) -> Verdict:
    """Whether this model reads everything that a writer with this schema may write.

    `writer` is a `writer_schema`, frozen or of a model; `cast` is run on the data first, such as a
    chain of upcasters; `samples` were written once; with `writer_model` every document is written
    by that model before it is read.
    """
    ours = reader_schema(reader)
    unchanged = _unchanged(writer, writer_schema(reader)) if cast is None else frozenset()
    return _Question(
        writer=writer,
        reader=ours,
        attempt=lambda document: _read(reader, document, cast),
        proof=None if cast else compare(*_provable(writer, ours, unchanged)),
        words=tidy(reader.model_json_schema(mode="validation")),
        unchanged=unchanged,
        samples=list(samples),
        pools={name: interests(function) for name, function in functions_of(reader).items()},
        producer=writer_model or (reader if unchanged else None),
        surely_produced=writer_model is not None,
        cast=cast is not None,
    ).answer()


def compare_schemas(
    writer: dict[str, Any], reader: dict[str, Any], *, samples: Sequence[Any] = ()
) -> Verdict:
    """The same for a reader that is no more there than its frozen `reader_schema`."""
    read = accepts(plain(reader))

    def attempt(document: Any) -> Refusal | None:
        if not read(document):
            return Refusal("the frozen reader's schema does not accept it")
        for spot in spots(reader, document):
            bounds = spot.node.get(DECIMAL)
            if bounds and isinstance(spot.value, str) and not within(bounds)(spot.value):
                return Refusal(f"{_field(spot.path)} is not within {bounds}")
        return None

    known = {check for _, node in nodes(writer) for check in node.get(CHECKED, ())}
    verdict = _Question(
        writer=writer,
        reader=reader,
        attempt=attempt,
        proof=compare(plain(writer), plain(reader)),
        samples=list(samples),
    ).answer()
    asked = {check for _, node in nodes(reader) for check in node.get(CHECKED, ())}
    if isinstance(verdict, Compatible) and not asked <= known:
        names = ", ".join(sorted(check.partition(":")[0] for check in asked - known))
        return Unknown(f"the frozen reader had checks that are not known any more: {names}")
    return verdict


def written(model: type[BaseModel], *, limit: int = _MOST) -> list[Any]:
    """Documents that the model itself has written, simplest first: good samples of it."""
    ours = reader_schema(model)
    pools = {name: interests(function) for name, function in functions_of(model).items()}
    rough = varied(writer_schema(model), ours, None, pools, limit)
    return list(itertools.islice(_produced(model, [*rough, *documents(plain(ours))]), limit))


@dataclass(frozen=True)
class _Question:
    """All that is known of a writer and a reader, and the way from that to a verdict."""

    writer: dict[str, Any]
    reader: dict[str, Any]
    attempt: Try
    proof: Verdict | None
    """What the schemas alone say; None where they cannot say anything."""
    words: dict[str, Any] | None = None
    """The reader's schema as a person knows it, to explain changes in."""
    unchanged: frozenset[str] = frozenset()
    """Pointers to what the writer's schema cannot say, where the reader would write the same."""
    samples: Sequence[Any] = ()
    pools: Pools = field(default_factory=dict)
    producer: type[BaseModel] | None = None
    """A model whose documents are surely written by the writer, if its schema accepts them."""
    surely_produced: bool = False
    """Whether only what the producer has written counts."""
    cast: bool = False

    def answer(self) -> Verdict:
        doubtful: tuple[Any, Refusal] | None = None
        tried = 0
        for document, sure in self._documents():
            tried += 1
            refusal = self.attempt(document)
            if refusal is None:
                continue
            if sure or self._blames(document, refusal) == "reader":
                return self._breaking(document)
            if self._blames(document, refusal) == "either":
                doubtful = doubtful or (document, refusal)
        return self._unrefuted(tried, doubtful)

    def _unrefuted(self, tried: int, doubtful: tuple[Any, Refusal] | None) -> Verdict:
        changes = self.proof.changes if self.proof else ()
        if doubtful:
            document, refusal = doubtful
            return Unknown(
                f"the reader refuses {_shown(document)} ({refusal.reason}), which the writer's "
                f"schema allows, but the writer has a validator or a serializer that may forbid "
                f"it, and no sample tells: say what is allowed by Field(…) instead",
                changes,
            )
        if isinstance(self.proof, Breaking | Unknown):
            shown = (
                f"the schemas differ in {_shown(self.proof.witness)} ({self.proof.reason})"
                if isinstance(self.proof, Breaking)
                else self.proof.reason
            )
            return Unknown(f"{shown}; the model took all of {tried} documents tried", changes)
        return Compatible((*changes, *self._notes(tried)))

    def _notes(self, tried: int) -> Iterator[Change]:
        for pointer, node in nodes(self.reader):
            if CHECKED in node and pointer not in self.unchanged:
                names = ", ".join(check.partition(":")[0] for check in node[CHECKED])
                yield Change(
                    "EM022", pointer, _field_at(pointer), f"checked by {names}; {tried} documents "
                    f"were tried and none was refused", "Nothing, if this is what you expect.",
                )  # fmt: skip

    def _breaking(self, document: Any) -> Breaking:
        def still_breaks(smaller: Any) -> bool:
            if not self._is_written(smaller):
                return False
            refusal = self.attempt(smaller)
            return refusal is not None and self._blames(smaller, refusal) == "reader"

        witness = shrunk(document, still_breaks)
        refusal = self.attempt(witness)
        reason = refusal.reason if refusal else ""
        told = compare(plain(self.writer), self.words) if self.words else self.proof
        seen = told.changes if isinstance(told, Breaking) else ()
        if not (isinstance(self.proof, Breaking) and seen):
            where = refusal.places[0][0] if refusal and refusal.places else ()
            seen = (
                Change(
                    "EM022", "".join(f"/{part}" for part in where), _field(where), reason,
                    "Take what was allowed before, or raise the version and add an upcaster.",
                ),
                *seen,
            )  # fmt: skip
        return Breaking(witness, seen, reason)

    def _blames(self, document: Any, refusal: Refusal) -> str:
        """Who a refusal tells of: the reader, neither (what both check alike forbids), either."""
        if self.surely_produced:
            return "reader"
        open_spots = [spot for spot in spots(self.writer, document) if CHECKED in spot.node]
        known = self._values_seen
        open_spots = [s for s in open_spots if s.value not in known.get(s.pointer, ())]
        if not open_spots:
            return "reader"
        changed = [spot for spot in open_spots if spot.pointer not in self.unchanged]
        if self.cast or not refusal.places:
            return "either"
        for place, kind in refusal.places:
            if not any(_concerns(spot.path, place, kind) for spot in open_spots):
                return "reader"
        if any(_concerns(s.path, place, kind) for s in changed for place, kind in refusal.places):
            return "either"
        return "neither"

    def _documents(self) -> Iterator[tuple[Any, bool]]:
        """Documents that the writer may write, and whether it surely has."""
        for sample in self.samples:
            yield sample, True
        rough = self._rough()
        if self.producer is not None:
            inputs = [*documents(plain(reader_schema(self.producer)), limit=_MOST), *rough]
            for document in _produced(self.producer, inputs):
                if self.surely_produced or self._is_written(document):
                    yield document, True
        if not self.surely_produced:
            for document in rough:
                yield document, False

    def _rough(self) -> list[Any]:
        known = {
            pointer: {"enum": values} for pointer, values in self._values_seen.items() if pointer
        }
        made = varied(replaced(self.writer, known), self.reader, self.words, self.pools, _MOST)
        if isinstance(self.proof, Breaking):
            made.insert(0, as_written(self.proof.witness))
        return [document for document in made if self._is_written(document)]

    @cached_property
    def _accepted(self) -> Callable[[Any], bool]:
        return accepts(plain(self.writer))

    @cached_property
    def _values_seen(self) -> Mapping[str, list[Any]]:
        """What the samples have where the writer's schema does not say what is written."""
        seen: dict[str, list[Any]] = {}
        for sample in self.samples:
            for spot in spots(self.writer, sample):
                if CHECKED in spot.node and spot.value not in seen.setdefault(spot.pointer, []):
                    seen[spot.pointer].append(spot.value)
        return seen

    def _is_written(self, document: Any) -> bool:
        return self._accepted(document) and all(
            within(spot.node[DECIMAL])(spot.value)
            for spot in spots(self.writer, document)
            if spot.node.get(DECIMAL)
        )


def _read(reader: type[BaseModel], document: Any, cast: Cast | None) -> Refusal | None:
    """What the model itself says of a document."""
    try:
        data = to_json(document if cast is None else cast(copy.deepcopy(document)))
    except Exception as error:  # noqa: BLE001  # a user's function: whatever it raises is the answer
        return Refusal(f"{type(error).__name__}: {error}")
    try:
        reader.model_validate_json(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        told = "; ".join(
            f"{_field(problem['loc'])}: {problem['msg']}" if problem["loc"] else problem["msg"]
            for problem in problems[:3]
        )
        return Refusal(told, tuple((problem["loc"], problem["type"]) for problem in problems))
    except Exception as error:  # noqa: BLE001  # as above
        return Refusal(f"a validator raised {type(error).__name__}: {error}")
    return None


def _produced(model: type[BaseModel], inputs: Iterable[Any]) -> Iterator[Any]:
    """What the model makes of those inputs that it can read."""
    seen: list[Any] = []
    for document in inputs:
        try:
            text = model.model_validate_json(to_json(document)).model_dump_json(
                by_alias=True, warnings=False
            )
        except Exception:  # noqa: BLE001, S112  # what it refuses, for whatever reason, is not made
            continue
        made = from_json(text)
        if made not in seen:
            seen.append(made)
            yield made


def _unchanged(writer: Any, now: Any) -> frozenset[str]:
    """Where values are checked, or written, by the same functions as before."""
    return frozenset(
        pointer for pointer, node in nodes(writer) if CHECKED in node and at(now, pointer) == node
    )


def _provable(writer: Any, reader: Any, unchanged: Iterable[str]) -> tuple[Any, Any]:
    """The two schemas for a proof, in which what did not change is the same."""
    both = [pointer for pointer in unchanged if at(reader, pointer) is not None]
    mine = replaced(writer, {pointer: {"const": "as before"} for pointer in both})
    return plain(mine), plain(replaced(reader, {pointer: {} for pointer in both}))


def _concerns(spot: Path, place: Path, kind: str) -> bool:
    """Whether an error at this place may come from the value at this spot."""
    if kind == "missing":
        return False  # a name is not there, whatever the values are
    rest = iter(place)  # pydantic puts the names of alternatives between those of fields
    if all(part in rest for part in spot):
        return True
    return kind in _VALIDATORS_ERRORS and spot[: len(place)] == place


def _shown(document: Any) -> str:
    text = to_json(document).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


def _field(path: Iterable[str | int]) -> str:
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _field_at(pointer: str) -> str:
    parts = [part for part in pointer.split("/") if part and not part.isdigit()]
    kept = ["[]" if part == "items" else part for part in parts if part not in _KEYWORDS]
    return ".".join(kept).replace(".[]", "[]")
