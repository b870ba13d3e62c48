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
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from eventmesh.compat.budget import StepBudget, Undecided, with_whole_stack
from eventmesh.compat.compare import accepts, compare
from eventmesh.compat.pydantic_models.checks import alike
from eventmesh.compat.pydantic_models.documents import (
    Path,
    Pools,
    Spot,
    aligned,
    are_bounds,
    as_written,
    first_beyond,
    has_bounds,
    nodes,
    replaced,
    spots,
    varied,
)
from eventmesh.compat.pydantic_models.functions import functions_of, interests
from eventmesh.compat.pydantic_models.kept_checks import lost_checks
from eventmesh.compat.pydantic_models.own_writings import reading_its_own
from eventmesh.compat.pydantic_models.schemas import (
    CHECKED,
    DECIMAL,
    as_read,
    plain,
    reader_schema,
    shown_schema,
    with_checked_files,
    writer_schema,
)
from eventmesh.compat.schema.pointers import at
from eventmesh.compat.schema.validity import explain
from eventmesh.compat.search.shrink import shrunk
from eventmesh.compat.verdict import Breaking, Change, Compatible, Unknown, Verdict

__all__ = [
    "allowed",
    "compare_model",
    "compare_schemas",
    "reader_schema",
    "writer_schema",
    "written",
]

Cast = Callable[[dict[str, Any]], dict[str, Any]]

_VALIDATORS_ERRORS = {"value_error", "assertion_error"}
_REFUSED = "Take what was allowed before, or raise the version and add an upcaster."
_NOT_READ = object()
_SHRINKING = 10_000
"""The step budget for making a witness smaller, with the model itself asked at each step."""
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


Blame = Literal["reader", "shared", "unsaid"]
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
    try:
        return _question(writer, reader, cast, samples, writer_model).answer()
    except Undecided as error:  # a writer's schema that nobody here has made
        return Unknown(str(error))
    except RecursionError:
        return Unknown("the models are nested too deeply")


def _question(
    writer: dict[str, Any],
    reader: type[BaseModel],
    cast: Cast | None,
    samples: Sequence[Any],
    writer_model: type[BaseModel] | None,
) -> _Question:
    ours = as_read(reader_schema(reader))
    before, now = alike(writer, writer_schema(reader))
    unchanged = _unchanged(before, now) if cast is None else frozenset()
    alone = [pointer for pointer in unchanged if _refers_to_same(at(before, pointer), before, now)]
    near = aligned(writer, ours)
    return _Question(
        writer=writer,
        reader=ours,
        attempt=lambda document: _read(reader, document, cast),
        proof=None if cast else compare(*_provable(writer, near, alone)),
        near=near,
        words=shown_schema(reader),
        unchanged=unchanged,
        samples=list(samples),
        pools=_pools(reader),
        producer=writer_model or (reader if unchanged else None),
        surely_produced=writer_model is not None,
        cast=cast is not None,
    )


def compare_schemas(
    writer: dict[str, Any],
    reader: dict[str, Any],
    own: dict[str, Any] | None = None,
    *,
    samples: Sequence[Any] = (),
) -> Verdict:
    """The same for a reader of which only the frozen `reader_schema` is left.

    `own` is the `writer_schema` that was frozen with it. Without it, a before validator of the
    reader counts as all that the reader does there.
    """
    told = reader if own is None else reading_its_own(reader, own)
    of_own = _compare_schemas(writer, told, samples)
    if told is reader or isinstance(of_own, Compatible):
        return of_own
    verdict = _compare_schemas(writer, reader, samples)
    if not isinstance(verdict, Compatible):
        return verdict
    rejected = f"{_shown(of_own.witness)}, " if isinstance(of_own, Breaking) else ""
    return Unknown(
        f"where the frozen reader has a validator that comes first (mode before, wrap or plain), "
        f"it is only known to read what its own version wrote: {rejected}{of_own.reason}"
    )


def _compare_schemas(
    writer: dict[str, Any], reader: dict[str, Any], samples: Sequence[Any]
) -> Verdict:
    reader = as_read(reader)
    read = accepts(plain(reader))

    def attempt(document: Any) -> Refusal | None:
        if not read(document):
            return Refusal(explain(plain(reader), "2020", document))
        reason = _out_of_bounds(reader, document)
        return Refusal(reason) if reason else None

    writer, reader = alike(writer, reader)
    verdict = _Question(
        writer=writer,
        reader=reader,
        attempt=attempt,
        proof=compare(plain(writer), plain(reader)),
        samples=list(samples),
    ).answer()
    if not isinstance(verdict, Compatible):
        return verdict
    try:
        checked = with_checked_files(writer), with_checked_files(reader)
        lost = with_whole_stack(lambda: lost_checks(*checked))
    except Undecided as error:
        return Unknown(str(error))
    except RecursionError:
        return Unknown("the models are nested too deeply")
    if lost:
        names = ", ".join(sorted(lost))
        return Unknown(f"the frozen reader had checks that the writer no longer makes: {names}")
    return verdict


def written(model: type[BaseModel], *, limit: int = _MOST) -> list[Any]:
    """Documents that the model itself has written, simplest first: good samples of it."""
    return list(itertools.islice(_produced(model, []), limit))


def allowed(writer: dict[str, Any]) -> Callable[[Any], str]:
    """Why a document is none that a writer with this schema may write; empty when it is one."""
    accepted = accepts(plain(writer))

    def refused(document: Any) -> str:
        if not accepted(document):
            return explain(plain(writer), "2020", document) or "its schema does not accept it"
        return _out_of_bounds(writer, document)

    return refused


def _out_of_bounds(schema: Any, document: Any) -> str:
    spot = first_beyond(schema, document)
    if spot is None:
        return ""
    bounds = spot.node.get(DECIMAL) or ", ".join(spot.node[CHECKED])
    return f"{_field(spot.path)}: {spot.value!r} is not within {bounds}"


@dataclass(frozen=True)
class _Question:
    """All that is known of a writer and a reader, and the way from that to a verdict."""

    writer: dict[str, Any]
    reader: dict[str, Any]
    attempt: Try
    proof: Verdict | None
    """What the schemas alone say; None where they cannot say anything."""
    near: dict[str, Any] | None = None
    """The reader's schema, with the writer's parts where these are surely read."""
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
            if self._blames(document, refusal) == "unsaid":
                doubtful = doubtful or (document, refusal)
        return self._unrefuted(tried, doubtful)

    def _unrefuted(self, tried: int, doubtful: tuple[Any, Refusal] | None) -> Verdict:
        changes = self.proof.changes if self.proof else ()
        if doubtful:
            document, refusal = doubtful
            return Unknown(
                f"the reader rejects {_shown(document)} ({refusal.reason}). The writer's schema "
                f"allows it, but a validator or serializer of the writer may forbid it, and no "
                f"sample shows whether it does: state what is allowed with Field(…) instead",
                changes,
            )
        if isinstance(self.proof, Breaking | Unknown):
            shown = (
                f"the schemas differ in {_shown(self.proof.witness)} ({self.proof.reason})"
                if isinstance(self.proof, Breaking)
                else self.proof.reason
            )
            return Unknown(
                f"{shown}; the model accepted all {tried} documents that were tried", changes
            )
        if not tried and not self._all_is_said:
            return Unknown(
                "the writer's schema is too large to generate a document for it", changes
            )
        return Compatible((*changes, *self._notes(tried)))

    def _notes(self, tried: int) -> Iterator[Change]:
        for pointer, node in nodes(self.reader):
            if CHECKED in node and pointer not in self.unchanged:
                names = ", ".join(check.partition(":")[0] for check in node[CHECKED])
                yield Change(
                    "EM022",
                    f"#{pointer}",
                    _field_at(pointer),
                    f"checked by {names}; {tried} documents were tried and none was rejected",
                    "Nothing, if this is what you expect.",
                )

    def _breaking(self, document: Any) -> Breaking:
        def still_breaks(smaller: Any) -> bool:
            if not self._is_written(smaller):
                return False
            if (
                self.surely_produced
                and self.producer
                and _rewritten(self.producer, smaller) != smaller
            ):
                return False
            refusal = self.attempt(smaller)
            return refusal is not None and self._blames(smaller, refusal) == "reader"

        witness = shrunk(document, still_breaks, StepBudget(_SHRINKING))
        refusal = self.attempt(witness)
        reason = refusal.reason if refusal else ""
        told = compare(plain(self.writer), self.words) if self.words else self.proof
        place = refusal.places[0][0] if refusal and refusal.places else ()
        seen = told.changes if isinstance(told, Breaking) else ()
        if not (isinstance(self.proof, Breaking) and seen):
            seen = (Change("EM022", _pointer(place), _field(place), reason, _REFUSED), *seen)
        there = [change for change in seen if change.field == _field(place)]
        others = [change for change in seen if change not in there]
        return Breaking(witness, (*there, *others), reason)

    def _blames(self, document: Any, refusal: Refusal) -> Blame:
        """Who is to blame for a refusal: the reader, a check that writer and reader share, and
        which the document would not have passed, or it cannot be said."""
        if self.surely_produced:
            return "reader"
        doubts = [
            spot
            for spot in spots(self.writer, document)
            if CHECKED in spot.node
            and not are_bounds(spot.node)
            and spot.value not in self._values_seen.get(spot.pointer, ())
        ]
        if not doubts:
            return "reader"
        if self.cast or not refusal.places:
            return "unsaid"
        found = [self._blame_for(place, kind, doubts) for place, kind in refusal.places]
        return "reader" if "reader" in found else "unsaid" if "unsaid" in found else "shared"

    def _blame_for(self, place: Path, kind: str, doubts: Sequence[Spot]) -> Blame:
        concerned = [spot for spot in doubts if _concerns(spot.path, place, kind)]
        if not concerned:
            return "reader"
        shared = all(
            spot.pointer in self.unchanged
            and (kind in _VALIDATORS_ERRORS or not isinstance(spot.value, dict))
            for spot in concerned
        )
        return "shared" if shared else "unsaid"

    def _documents(self) -> Iterator[tuple[Any, bool]]:
        """Documents that the writer may write, and whether it surely has."""
        for sample in self.samples:
            yield sample, True
        rough = self._rough()
        if self.producer is not None:
            for made in _produced(self.producer, rough):
                document = made if self.surely_produced else _without_news(made, self.writer)
                if self.surely_produced or self._is_written(document):
                    yield document, True
        if not self.surely_produced:
            for document in rough:
                yield document, False

    def _rough(self) -> list[Any]:
        known = {
            pointer: {"enum": values} for pointer, values in self._values_seen.items() if pointer
        }
        made = varied(
            replaced(self.writer, known),
            self.reader,
            self.pools,
            _MOST,
            [part for part in (self.near, self.words) if part is not None],
        )
        if isinstance(self.proof, Breaking):
            made.insert(0, as_written(self.proof.witness))
        return [document for document in made if self._is_written(document)]

    @property
    def _all_is_said(self) -> bool:
        """Whether the reader's schema leaves nothing open, so that a proof needs no trial."""
        return all(
            pointer in self.unchanged for pointer, node in nodes(self.reader) if CHECKED in node
        ) and all(
            has_bounds(at(self.reader, pointer), node[DECIMAL])
            for pointer, node in nodes(self.writer)
            if DECIMAL in node
        )

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
        return self._accepted(document) and not _out_of_bounds(self.writer, document)


def _pools(model: type[BaseModel]) -> Pools:
    return {name: interests(function) for name, function in functions_of(model).items()}


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


def _produced(model: type[BaseModel], more: Sequence[Any]) -> Iterator[Any]:
    """What the model makes of what it can read: of its own documents, and of some more."""
    writer, ours, pools = writer_schema(model), reader_schema(model), _pools(model)
    inputs = [
        *varied(writer, ours, pools, _MOST, [aligned(writer, ours)]),
        *varied(ours, ours, pools, _MOST),
        *more,
    ]
    seen: list[Any] = []
    for document in inputs:
        made = _rewritten(model, document)
        if made is not _NOT_READ and made not in seen:
            seen.append(made)
            yield made


def _rewritten(model: type[BaseModel], document: Any) -> Any:
    """What the model writes after it has read this document."""
    try:
        value = model.model_validate_json(to_json(document))
        return from_json(value.model_dump_json(by_alias=True, warnings=False))
    except Exception:  # noqa: BLE001  # whatever a user's function raises, it says no
        return _NOT_READ


def _without_news(document: Any, writer: Mapping[str, Any]) -> Any:
    """The document without fields that the writer does not have."""
    known = writer.get("properties")
    if not isinstance(document, dict) or known is None or writer.get("additionalProperties"):
        return document
    return {name: value for name, value in document.items() if name in known}


def _unchanged(writer: Any, now: Any) -> frozenset[str]:
    """Where values are checked, or written, by the same functions as before. Of an object only
    the checks count: its fields are looked at one by one."""
    found = set()
    for pointer, node in nodes(writer):
        other = at(now, pointer)
        if CHECKED in node and isinstance(other, dict):
            parts = [CHECKED] if "properties" in node else [*node, *other]
            if all(node.get(part) == other.get(part) for part in parts):
                found.add(pointer)
    return frozenset(found)


def _refers_to_same(node: Any, writer: Any, now: Any) -> bool:
    """Whether the definitions that this part of both schemas leads to are the same in them."""
    ahead, seen = [node], set[str]()
    while ahead:
        for _, part in nodes(ahead.pop()):
            reference = str(part.get("$ref", "")).removeprefix("#")
            if reference and reference not in seen:
                seen.add(reference)
                if at(writer, reference) != at(now, reference):
                    return False
                ahead.append(at(writer, reference))
    return True


def _provable(writer: Any, reader: Any, unchanged: Iterable[str]) -> tuple[Any, Any]:
    """The two schemas for a proof, in which what did not change is the same."""
    as_before = {
        pointer: {"const": f"as before: {at(writer, pointer)}"}
        for pointer in unchanged
        if "properties" not in at(writer, pointer) and at(reader, pointer) is not None
    }
    return plain(replaced(writer, as_before)), plain(replaced(reader, as_before))


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


def _pointer(path: Iterable[str | int]) -> str:
    parts = ("/items" if isinstance(part, int) else f"/properties/{part}" for part in path)
    return "#" + "".join(parts)


def _field_at(pointer: str) -> str:
    parts = [part for part in pointer.split("/") if part and not part.isdigit()]
    kept = ["[]" if part == "items" else part for part in parts if part not in _KEYWORDS]
    return ".".join(kept).replace(".[]", "[]")
