"""Reading JSON files that may be huge, deeply nested, ambiguous or not JSON at all.

A user names such files on the command line. Whatever is in them leads to a UsageError at most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eventmesh.contracts.locks.lock_file import MAX_BYTES, BrokenLock, parse
from eventmesh.errors import UsageError


def read_document(path: Path) -> Any:
    """The content of the file.

    UsageError if it is not a regular file, is too large, is not JSON, or repeats a key.
    """
    try:
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "is not a regular file"
            raise UsageError(f"{path} {kind if path.exists() else 'does not exist'}.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                f"{path} has {size:,} bytes, and a schema file may have at most {MAX_BYTES:,}."
            )
        return parse_document(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def read_schema(path: Path) -> dict[str, Any]:
    """The content of the file, which must be an object."""
    content = read_document(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON Schema: it holds {_kind(content)}, not an object.")
    return content


def parse_document(data: bytes, where: str) -> Any:
    """The value of a JSON text; UsageError that begins with `where` if it is not valid."""
    try:
        return parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not valid UTF-8.") from None
    except BrokenLock as error:
        raise UsageError(f"{where} {error}.") from None


def _kind(content: Any) -> str:
    match content:
        case list():
            return "a list"
        case str():
            return "a string"
        case None:
            return "null"
        case bool():
            return "a boolean"
        case _:
            return "a number"
