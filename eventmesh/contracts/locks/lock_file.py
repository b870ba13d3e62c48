"""One lock file: a revision of a message's version, frozen for ever but for its status."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from eventmesh.errors import UsageError

Status = Literal["active", "deprecated", "retired"]

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
"""How deep a schema or a sample may be nested: what is deeper could not be walked through."""

FILE_NAME = re.compile(r"v([1-9][0-9]{0,8})(?:\.([2-9]|[1-9][0-9]{1,8}))?\.json")

_SEALED = ("name", "version", "revision", "kind", "key", "writer", "reader", "samples")
_KEYS = {"status", "sunset", "hash", *_SEALED}
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Lock:
    """A revision of a version of a message, as it is frozen or would be.

    `hash` seals everything but the status and the day on which a deprecated version ends.
    """

    name: str
    version: int
    revision: int
    kind: str
    key: str | None
    writer: dict[str, Any]
    """The schema of what is written: closed, with every field that is always written required."""
    reader: dict[str, Any]
    """The schema of what is read."""
    samples: tuple[Any, ...]
    """Messages as they were written."""
    hash: str
    status: Status
    sunset: date | None
    path: Path

    def __str__(self) -> str:
        revision = f".{self.revision}" if self.revision > 1 else ""
        return f"{self.name} v{self.version}{revision}"


class BrokenLock(ValueError):
    """A file cannot be read as the lock file that it should be: the reason, to follow its name."""

    def __init__(self, reason: str) -> None:
        # JSON can spell lone surrogates, which no terminal and no file takes.
        super().__init__(reason.encode(errors="backslashreplace").decode())


def seal(content: dict[str, Any]) -> str:
    """The hash of what may never change in a lock file; its layout may."""
    parts = [content[part] for part in _SEALED]
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_name(version: int, revision: int) -> str:
    """How the file of this revision is called."""
    return f"v{version}.json" if revision == 1 else f"v{version}.{revision}.json"


def write_lock(lock: Lock) -> None:
    """Write the file of a lock that has none yet; UsageError when that is not possible."""
    content = {
        "status": lock.status,
        "sunset": lock.sunset and lock.sunset.isoformat(),
        "hash": lock.hash,
    } | {part: getattr(lock, part) for part in _SEALED}
    _put(lock.path, (json.dumps(content, indent=2) + "\n").encode())


def restate(path: Path, status: Status, sunset: date | None) -> None:
    """Rewrite the status and the sunset in a lock file, and leave every other byte as it is.

    UsageError when that is not possible.
    """
    try:
        text = _decoded(_content(path))
        spans = _members(text)
    except BrokenLock as error:
        raise UsageError(f"{path} {error}. Restore it from version control.") from None
    values = {"status": json.dumps(status), "sunset": json.dumps(sunset and sunset.isoformat())}
    for part, (start, end) in sorted(spans.items(), key=lambda item: item[1], reverse=True):
        if part in values:
            text = text[:start] + values[part] + text[end:]
    _put(path, text.encode())


def read_lock(
    path: Path, name: str, version: int, revision: int, data: bytes | None = None
) -> Lock:
    """The lock in a file that should be this message's version and revision, or would be if it
    held this data; BrokenLock."""
    content = parse(_decoded(_content(path) if data is None else data))
    if not isinstance(content, dict) or content.keys() != _KEYS:
        keys = content.keys() if isinstance(content, dict) else set[str]()
        missing, odd = sorted(_KEYS - keys), sorted(keys - _KEYS)
        raise BrokenLock(
            "is no lock file: "
            + (f"it lacks {', '.join(missing)}" if missing else f"it has {', '.join(odd)[:200]}")
        )
    if content["hash"] != seal(content):
        raise BrokenLock("was edited: its hash does not fit what it holds")
    stated = (content["name"], content["version"], content["revision"])
    if stated != (name, version, revision):
        raise BrokenLock(f"holds revision {stated[2]} of {stated[0]} v{stated[1]}")
    if content["status"] not in ("active", "deprecated", "retired"):
        raise BrokenLock("has a status that is none of active, deprecated and retired")
    if not (isinstance(content["writer"], dict) and isinstance(content["reader"], dict)):
        raise BrokenLock("holds something else than schemas")
    samples, kind, key = content["samples"], content["kind"], content["key"]
    if not isinstance(samples, list) or kind not in ("event", "command"):
        raise BrokenLock("holds no message's version")
    if not isinstance(key, str | None):
        raise BrokenLock("has a key that is no name of a field")
    sunset = _day(content["sunset"])
    return Lock(
        name=name,
        version=version,
        revision=revision,
        kind=kind,
        key=key,
        writer=content["writer"],
        reader=content["reader"],
        samples=tuple(samples),
        hash=content["hash"],
        status=cast("Status", content["status"]),
        sunset=sunset,
        path=path,
    )


def parse(text: str) -> Any:
    """The JSON value that this text is; BrokenLock when it is none, or one nobody should trust."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except BrokenLock:
        raise
    except ValueError as error:
        raise BrokenLock(f"is no JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise BrokenLock("is nested too deeply") from None
    if is_deeper(value, MAX_DEPTH):
        raise BrokenLock(f"is nested more than {MAX_DEPTH} levels deep")
    return value


def is_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested in more levels than so many."""
    level = [value]
    for _ in range(most + 1):
        level = [
            below
            for each in level
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe of that name would be waited for
            raise BrokenLock("is no file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrokenLock(f"cannot be read: {error.strerror or error}") from None


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise BrokenLock(f"has more than {MAX_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BrokenLock("is no text in UTF-8") from None


def _put(path: Path, data: bytes) -> None:
    """The whole file or none of it, also when this process is killed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(data)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"The lock file {path} cannot be written: {error.strerror or error}. Give this user "
            f"the right to write there, or set EVENTMESH_SCHEMAS to another folder."
        ) from None


def _members(text: str) -> dict[str, tuple[int, int]]:
    """Where the value of each name of the outermost object stands."""
    if not isinstance(parse(text), dict):
        raise BrokenLock("is no lock file")
    decoder, spans = json.JSONDecoder(), dict[str, tuple[int, int]]()
    at = text.index("{") + 1
    while text[_after_space(text, at)] != "}":
        name, at = decoder.raw_decode(text, _after_space(text, at))
        start = _after_space(text, _after_space(text, at) + 1)
        _, end = decoder.raw_decode(text, start)
        spans[name] = (start, end)
        at = _after_space(text, end)
        at += text[at] == ","
    return spans


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        raise BrokenLock(f"has {counted.most_common(1)[0][0][:100]!r} twice in one object")
    return content


def _no_number(constant: str) -> NoReturn:
    raise BrokenLock(f"is no JSON: {constant} is no number there")


def _day(value: object) -> date | None:
    try:
        return None if value is None else date.fromisoformat(cast("str", value))
    except (ValueError, TypeError):
        raise BrokenLock("has a sunset that is no day such as 2026-12-31") from None
