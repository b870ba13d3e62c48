from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.errors import UsageError
from eventmesh.review.bundling import bundle
from eventmesh.review.json_files import MAX_BYTES, read_schema
from eventmesh.review.schema_lookup import look_up

NESTED = '{"not":' * 200 + "{}" + "}" * 200


def as_side(path: Path) -> object:
    return look_up(str(path), read_locks(path.parent), list)


@pytest.mark.parametrize("read", [read_schema, bundle, as_side])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{nonsense", "not valid JSON"),
        (bytes(range(256)), "UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "'c' twice"),
        (b'{"minimum": NaN}', "NaN"),
        (b'{"minimum": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (NESTED.encode(), "levels"),
        (b"[" * 100_000, "too deeply"),
        (b"[]", "not a JSON Schema"),
        (b'"text"', "not a JSON Schema"),
        (b"null", "not a JSON Schema"),
    ],
)
def test_a_file_that_is_not_a_json_schema_is_a_usage_error(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.json") as caught:
        read(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("read", [read_schema, bundle, as_side])
def test_a_path_that_is_not_a_regular_file_or_too_large_is_a_usage_error(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "circle.json").symlink_to("circle.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name in ("folder", "pipe", "circle", "large", "missing", "x" * 300, "nul\0"):
        with pytest.raises(UsageError):
            read(tmp_path / f"{name}.json")


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"type": "string"}', encoding="utf-8-sig")
    assert read_schema(path) == {"type": "string"}
