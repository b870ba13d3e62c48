"""The one question: is every document that the writer's schema accepts accepted by the reader's?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from eventmesh.contracts.compat.documents import Maker
from eventmesh.contracts.compat.normal import normal
from eventmesh.contracts.compat.proof import difference, proved
from eventmesh.contracts.compat.reading import Schema, Unproved, check_draft, check_schema
from eventmesh.contracts.compat.validity import Check, explain, second_validator, validator
from eventmesh.contracts.compat.verdict import Breaking, Compatible, Unknown, Verdict

TRIES = 4_000
"""Candidates that are tried as witnesses."""


def compare(writer: Schema, reader: Schema, *, draft: str = "2020") -> Verdict:
    """Whether the reader's schema accepts every document that the writer's accepts.

    `draft` is `4`, `7` or `2020`; a schema's own `$schema` wins. `format` is enforced as pydantic
    enforces it. Compatible is proved; the witness of Breaking is valid for the writer's schema and
    not for the reader's by two validators; whatever is neither is Unknown, such as a reference out
    of the schema, which is never followed. UsageError for what is no JSON Schema.
    """
    check_draft(draft)
    try:
        check_schema(writer, draft, "The writer's schema")
        check_schema(reader, draft, "The reader's schema")
        return _compare(writer, reader, draft)
    except Unproved as error:
        return Unknown(str(error))
    except RecursionError:
        return Unknown("the schemas are nested too deeply")


def _compare(writer: Schema, reader: Schema, draft: str) -> Verdict:
    from eventmesh.contracts.compat.changes import changes
    from eventmesh.contracts.compat.shrink import shrunk

    mine, theirs = normal(writer, draft), normal(reader, draft)
    found = changes(writer, reader, draft)
    if mine == theirs:
        return Compatible(found)
    judge = _Judge(writer, reader, draft)
    for candidate in _candidates(mine, theirs):
        if judge.refutes(candidate):
            witness = shrunk(candidate, judge.refutes)
            return Breaking(witness, found, explain(reader, draft, witness))
    if proved(mine, theirs):
        return Compatible(found)
    return Unknown("no document was found that breaks, and no proof that there is none", found)


def _candidates(writer: Schema, reader: Schema) -> Iterator[Any]:
    """What may be a witness: documents of the difference, then those beside all bounds."""
    left = difference(writer, reader)
    if left is False:
        yield from islice(Maker(writer, reader).candidates(), 200)
        return
    if left is not None and left is not True:
        try:
            yield from islice(Maker(normal(left, "2020")).candidates(), 300)
        except Unproved:
            pass
    yield from islice(Maker(writer, reader).candidates(), TRIES)


class _Judge:
    """Says of documents whether they are witnesses; the second validator is asked last."""

    def __init__(self, writer: Schema, reader: Schema, draft: str) -> None:
        self._pair = (writer, reader, draft)
        self._written = validator(writer, draft)
        self._read = validator(reader, draft)
        self._second: tuple[Check, Check] | None = None

    def refutes(self, document: Any) -> bool:
        if not self._written(document) or self._read(document):
            return False
        if self._second is None:
            writer, reader, draft = self._pair
            self._second = second_validator(writer, draft), second_validator(reader, draft)
        written, read = self._second
        try:
            return written(document) and not read(document)
        except Unproved:
            return True  # it cannot be asked: the first one's word counts


def documents(
    schema: Schema, *, also: Sequence[Schema] = (), draft: str = "2020", limit: int = 200
) -> list[Any]:
    """At most `limit` documents that the schema accepts, simplest first, always the same ones.

    They lie on its bounds and, where `also` names other schemas, beside the bounds of those.
    UsageError for what is no JSON Schema; Unproved for a schema that cannot be read here.
    """
    check_draft(draft)
    for one in (schema, *also):
        check_schema(one, draft)
    accepted = accepts(schema, draft=draft)
    mine = normal(schema, draft)
    made = [Maker(mine).candidates()]
    made += [Maker(mine, normal(one, draft)).candidates() for one in also]
    found: list[Any] = []
    for candidates in made:
        room = limit if candidates is made[-1] else max(limit // (len(made) + 1), 1)
        for candidate in islice(candidates, TRIES):
            if len(found) >= limit or room <= 0:
                break
            if candidate not in found and accepted(candidate):
                found.append(candidate)
                room -= 1
    return found


def accepts(schema: Schema, *, draft: str = "2020") -> Check:
    """Whether a document is of the schema, with `format` as pydantic enforces it."""
    return validator(schema, draft)
