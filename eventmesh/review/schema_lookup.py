"""Finding the schema that a user names on the command line, and comparing two of them.

A name is a frozen version (`payments.payment_captured@1`, or `@1.2` for its second revision), the
bare name of a message for its current code, or the path of a lock file or JSON Schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eventmesh.compat import Verdict, compare
from eventmesh.compat.pydantic_models.comparison import compare_model
from eventmesh.compat.pydantic_models.schemas import plain
from eventmesh.contracts.locks.freezing import lock_of
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.locks.lock_folder import Locks
from eventmesh.contracts.message import Message
from eventmesh.contracts.versions import readable_versions, upcast
from eventmesh.errors import UsageError
from eventmesh.review.bundling import bundle
from eventmesh.review.json_files import read_document


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether one side reads everything that the other writes."""

    writer: str
    reader: str
    verdict: Verdict
    upcast_from: int | None = None
    """The version from which the reader's upcasters were applied, if they were."""
    ignores_upcasters: bool = False
    """Whether these are two versions of one message, which upcasters might connect, but the reader
    is not code that could run them."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: the schema of what it writes and of what it reads."""

    label: str
    writer: dict[str, Any]
    reader: dict[str, Any]
    model: type[Message] | None = None
    """The model that really reads, where this side is the current code."""
    samples: Sequence[Any] = ()
    message: str | None = None
    version: int | None = None

    def compare_as_reader_of(self, other: Side) -> Comparison:
        """Compare what the other side writes with what this one reads."""
        older: int | None = None
        if self.message is not None and self.message == other.message:
            older = other.version if (other.version or 0) < (self.version or 0) else None
        if self.model is None:
            verdict = compare(plain(other.writer), plain(self.reader))
            return Comparison(other.label, self.label, verdict, ignores_upcasters=older is not None)
        model, cast = self.model, None
        if older is not None and older in readable_versions(model):
            cast = partial(_upcast, model, older)
        verdict = compare_model(
            other.writer, model, cast=cast, samples=other.samples, writer_model=other.model
        )
        return Comparison(other.label, self.label, verdict, older if cast else None)


def look_up(text: str, locks: Locks, models: Callable[[], Iterable[type[Message]]]) -> Side:
    """The schema that the text names; `models` are those of the current code.

    UsageError that says what can be written when it names none.
    """
    name, at, version = text.partition("@")
    if "/" in text or "\\" in text or text.endswith(".json") or Path(text).exists():
        return _of_file(Path(text))
    if at:
        lock = find_revision(locks, name, version)
        return Side(text, lock.writer, lock.reader, None, lock.samples, lock.name, lock.version)
    for model in models():
        if model.__identity__.name == name:
            lock = lock_of(model)
            label = f"{text} (current code)"
            return Side(label, lock.writer, lock.reader, model, (), lock.name, lock.version)
    raise UsageError(
        f"{text!r} is neither a file nor a message that one of these services owns. Write a path, "
        f"a frozen version such as payments.payment_captured@1, or the name of a message for its "
        f"current code."
    )


def find_revision(locks: Locks, name: str, text: str) -> Lock:
    """The frozen revision that `1` or `1.2` names; the latest of a version named without one."""
    version, dot, revision = text.partition(".")
    if not version.isdecimal() or (dot and not revision.isdecimal()):
        raise UsageError(f"{name}@{text}: write a version such as @1, or a revision such as @1.2.")
    revisions = find_revisions(locks, name, int(version))
    if not dot:
        return revisions[-1]
    for lock in revisions:
        if lock.revision == int(revision):
            return lock
    raise UsageError(f"{name} v{version} has no revision {revision}, only 1 to {len(revisions)}.")


def find_revisions(locks: Locks, name: str, version: int) -> Sequence[Lock]:
    """The frozen revisions of a version; UsageError that lists what is frozen if it is not."""
    versions = locks.of(name)
    if version in versions:
        return versions[version]
    for problem in locks.problems_of(name):
        if problem.subject == f"{name} v{version}":
            raise UsageError(f"{problem.subject}: {problem.summary}. {problem.fix}")
    if versions:
        known = ", ".join(map(str, versions))
        raise UsageError(f"{name} has no frozen version {version}; frozen versions: {known}.")
    names = ", ".join(locks.names()) or "none"
    raise UsageError(f"{name!r} is not frozen in {locks.root}; frozen messages: {names}.")


def _upcast(model: type[Message], version: int, data: dict[str, Any]) -> dict[str, Any]:
    return upcast(model, data, version)


def _of_file(path: Path) -> Side:
    content = read_document(path)
    if not isinstance(content, dict) or not {"writer", "reader", "hash"} <= content.keys():
        schema = bundle(path)
        return Side(str(path), schema, schema)
    writer, reader, samples = content["writer"], content["reader"], content.get("samples", [])
    if not (isinstance(writer, dict) and isinstance(reader, dict)):
        raise UsageError(f"{path} is a lock file without schemas. Restore it from version control.")
    name, version = content.get("name"), content.get("version")
    return Side(
        str(path),
        writer,
        reader,
        samples=samples if isinstance(samples, list) else (),
        message=name if isinstance(name, str) else None,
        version=version if isinstance(version, int) else None,
    )
