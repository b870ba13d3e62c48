"""JSON files that somebody else wrote, read without trusting them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eventmesh.contracts.locks.lock_file import MAX_BYTES, BrokenLock, parse
from eventmesh.errors import UsageError


def read_document(path: Path) -> Any:
    """The file's content; UsageError when it is no file, too large, or no JSON in which each key
    stands once."""
    try:
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "is no file"
            raise UsageError(f"{path} {kind if path.exists() else 'is not there'}.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                f"{path} has {size:,} bytes: at most {MAX_BYTES:,} are read as one schema."
            )
        return parse_document(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def read_schema(path: Path) -> dict[str, Any]:
    """The file's content as a JSON Schema, which is an object."""
    content = read_document(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no JSON Schema: it holds {_kind(content)}, not an object.")
    return content


def parse_document(data: bytes, where: str) -> Any:
    """The content of a JSON text; UsageError naming the place when it is none."""
    try:
        return parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"{where} is no text in UTF-8.") from None
    except BrokenLock as error:
        raise UsageError(f"{where} {error}.") from None


def _kind(content: Any) -> str:
    match content:
        case list():
            return "a list"
        case str():
            return "a text"
        case None:
            return "null"
        case bool():
            return "true or false"
        case _:
            return "a number"
