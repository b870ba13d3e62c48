"""What a person means by `name@version`, by a file or by a name: the two schemas of a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventmesh.compat import Verdict, compare
from eventmesh.contracts.locks.freezing import lock_of
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.locks.lock_folder import Locks
from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.review.bundling import bundle
from eventmesh.review.json_files import read_document


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: what it writes, what it reads, and how it is called."""

    label: str
    writer: dict[str, Any]
    reader: dict[str, Any]
    model: type[Message] | None = None
    """The model that really reads, where it is code."""
    samples: Sequence[Any] = ()

    def reads(self, other: Side) -> Verdict:
        """Whether this side can read all that the other writes."""
        from eventmesh.compat.model_schemas import plain
        from eventmesh.compat.models import compare_model

        if self.model is not None:
            return compare_model(
                other.writer, self.model, samples=other.samples, writer_model=other.model
            )
        return compare(plain(other.writer), plain(self.reader))


def resolve(text: str, locks: Locks, models: Callable[[], Iterable[type[Message]]]) -> Side:
    """What is meant: a lock file or a JSON Schema by its path, a frozen version as
    `name@version` or `name@version.revision`, and the code of today by the bare name."""
    name, at, version = text.partition("@")
    if "/" in text or "\\" in text or text.endswith(".json") or Path(text).exists():
        return _of_file(Path(text))
    if at:
        lock = version_of(locks, name, version)
        return Side(text, lock.writer, lock.reader, samples=lock.samples)
    for model in models():
        if model.__identity__.name == name:
            lock = lock_of(model)
            return Side(f"{text} (the code)", lock.writer, lock.reader, model)
    raise UsageError(
        f"{text!r} is no file, and no message that a service here owns. Write a path, a version "
        f"such as payments.payment_captured@1, or the name of a message for what the code says."
    )


def version_of(locks: Locks, name: str, text: str) -> Lock:
    """The frozen revision that is called `1` or `1.2`; the latest when only the version is said."""
    version, dot, revision = text.partition(".")
    if not version.isdecimal() or (dot and not revision.isdecimal()):
        raise UsageError(f"{name}@{text}: write a version such as @1, or a revision such as @1.2.")
    revisions = frozen(locks, name, int(version))
    if not dot:
        return revisions[-1]
    for lock in revisions:
        if lock.revision == int(revision):
            return lock
    raise UsageError(f"{name} v{version} has no revision {revision}, only 1 to {len(revisions)}.")


def frozen(locks: Locks, name: str, version: int) -> Sequence[Lock]:
    """The revisions of a version; UsageError saying what there is when there are none."""
    versions = locks.of(name)
    if version in versions:
        return versions[version]
    for problem in locks.problems_of(name):
        if problem.subject == f"{name} v{version}":
            raise UsageError(f"{problem.subject}: {problem.summary}. {problem.fix}")
    if versions:
        known = ", ".join(map(str, versions))
        raise UsageError(f"{name} has no frozen version {version}; there is: {known}.")
    names = ", ".join(locks.names()) or "none at all"
    raise UsageError(f"{name!r} is not frozen in {locks.root}; frozen messages: {names}.")


def _of_file(path: Path) -> Side:
    content = read_document(path)
    if isinstance(content, dict) and {"writer", "reader", "hash"} <= content.keys():
        writer, reader, samples = content["writer"], content["reader"], content.get("samples", [])
        if not (isinstance(writer, dict) and isinstance(reader, dict)):
            raise UsageError(f"{path} is a lock file without schemas: restore it.")
        return Side(str(path), writer, reader, samples=samples if isinstance(samples, list) else ())
    schema = bundle(path)
    return Side(str(path), schema, schema)
