"""One lock file: the frozen schemas of one revision of a version, as JSON.

Its hash covers everything except the status (active, deprecated, retired) and the sunset date,
which may change later. A file that was edited by hand has the wrong hash, and is rejected. Files
come from version control and merges, so anything may be in them: reading one either returns a
`Lock` or raises `BrokenLock` with the reason.
"""

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
"""The deepest nesting of a schema or sample, so that recursive functions can process it."""

FILE_NAME = re.compile(r"v([1-9][0-9]{0,8})(?:\.([2-9]|[1-9][0-9]{1,8}))?\.json")

_SEALED = ("name", "version", "revision", "kind", "key", "writer", "reader", "samples")
_KEYS = {"status", "sunset", "hash", *_SEALED}
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Lock:
    """A revision of a version of a message, frozen or about to be.

    `hash` covers everything except `status` and `sunset`, the last day of a deprecated version.
    """

    name: str
    version: int
    revision: int
    kind: str
    key: str | None
    writer: dict[str, Any]
    """The schema of the messages that are sent. Fields that are always sent are required in it."""
    reader: dict[str, Any]
    """The schema of the messages that can be read."""
    samples: tuple[Any, ...]
    """Example messages, as they were sent."""
    hash: str
    status: Status
    sunset: date | None
    path: Path

    def __str__(self) -> str:
        revision = f".{self.revision}" if self.revision > 1 else ""
        return f"{self.name} v{self.version}{revision}"


class BrokenLock(ValueError):
    """The file is not a valid lock file; the message is a reason that follows the file's name."""

    def __init__(self, reason: str) -> None:
        # JSON can contain lone surrogates, which cannot be printed or written to a file.
        super().__init__(reason.encode(errors="backslashreplace").decode())


def seal(content: dict[str, Any]) -> str:
    """The hash of everything that may never change in a lock file, whatever its layout."""
    parts = [content[part] for part in _SEALED]
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_name(version: int, revision: int) -> str:
    return f"v{version}.json" if revision == 1 else f"v{version}.{revision}.json"


def write_lock(lock: Lock) -> None:
    """Write a new lock file; UsageError if that is not possible."""
    content = {
        "status": lock.status,
        "sunset": lock.sunset and lock.sunset.isoformat(),
        "hash": lock.hash,
    } | {part: getattr(lock, part) for part in _SEALED}
    write_atomically(lock.path, (json.dumps(content, indent=2) + "\n").encode())


def write_status(path: Path, status: Status, sunset: date | None) -> None:
    """Change the status and the sunset in a lock file, and leave every other byte as it is.

    UsageError if that is not possible.
    """
    try:
        text = read_text(path)
        spans = _value_positions(text)
    except BrokenLock as error:
        raise UsageError(f"{path} {error}. Restore it from version control.") from None
    values = {"status": json.dumps(status), "sunset": json.dumps(sunset and sunset.isoformat())}
    for part, (start, end) in sorted(spans.items(), key=lambda item: item[1], reverse=True):
        if part in values:
            text = text[:start] + values[part] + text[end:]
    write_atomically(path, text.encode())


def read_lock(
    path: Path, name: str, version: int, revision: int, data: bytes | None = None
) -> Lock:
    """Read the lock file of this revision; BrokenLock if it is not a valid one.

    With `data`, that is the content, whatever is in the file.
    """
    content = parse(read_text(path) if data is None else decode(data))
    if not isinstance(content, dict) or content.keys() != _KEYS:
        keys = content.keys() if isinstance(content, dict) else set[str]()
        missing, unknown = sorted(_KEYS - keys), sorted(keys - _KEYS)
        raise BrokenLock(
            "is not a lock file: "
            + (
                f"it lacks {', '.join(missing)}"
                if missing
                else f"it has the unknown keys {', '.join(unknown)[:200]}"
            )
        )
    if content["hash"] != seal(content):
        raise BrokenLock("was edited: its hash does not match its content")
    stated = (content["name"], content["version"], content["revision"])
    if stated != (name, version, revision):
        raise BrokenLock(f"contains revision {stated[2]} of {stated[0]} v{stated[1]}")
    if content["status"] not in ("active", "deprecated", "retired"):
        raise BrokenLock("has a status other than active, deprecated and retired")
    if not (isinstance(content["writer"], dict) and isinstance(content["reader"], dict)):
        raise BrokenLock("has no valid schemas")
    samples, kind, key = content["samples"], content["kind"], content["key"]
    if not isinstance(samples, list) or kind not in ("event", "command"):
        raise BrokenLock("has no valid samples or kind")
    if not isinstance(key, str | None):
        raise BrokenLock("has a key that is not a string")
    sunset = _date(content["sunset"])
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
    """Parse JSON strictly; BrokenLock for repeated keys, NaN and values nested too deeply."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_reject_constant)
    except BrokenLock:
        raise
    except ValueError as error:
        raise BrokenLock(f"is not valid JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise BrokenLock("is nested too deeply") from None
    if is_deeper(value, MAX_DEPTH):
        raise BrokenLock(f"is nested more than {MAX_DEPTH} levels deep")
    return value


def is_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than `most` levels deep."""
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


def read_text(path: Path) -> str:
    """The text of a file that may be anything; BrokenLock where it is not one."""
    return decode(_read(path))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # reading a pipe would block
            raise BrokenLock("is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrokenLock(f"cannot be read: {error.strerror or error}") from None


def decode(data: bytes) -> str:
    """The text of a lock file's content; BrokenLock where it is not one."""
    if len(data) > MAX_BYTES:
        raise BrokenLock(f"has more than {MAX_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BrokenLock("is not valid UTF-8") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file and rename it, so that a killed process leaves no partial file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"The lock file {path} cannot be written: {error.strerror or error}. Make the folder "
            f"writable for this user, or set EVENTMESH_SCHEMAS to another folder."
        ) from None


def _value_positions(text: str) -> dict[str, tuple[int, int]]:
    """The start and end of the value of each key of the outermost object."""
    if not isinstance(parse(text), dict):
        raise BrokenLock("is not a lock file")
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        raise BrokenLock(f"has {counted.most_common(1)[0][0][:100]!r} twice in one object")
    return content


def _reject_constant(constant: str) -> NoReturn:
    raise BrokenLock(f"is not valid JSON: {constant} is not a JSON number")


def _date(value: object) -> date | None:
    try:
        return None if value is None else date.fromisoformat(cast("str", value))
    except (ValueError, TypeError):
        raise BrokenLock("has a sunset that is not a date such as 2026-12-31") from None
