from __future__ import annotations

from pathlib import Path

import pytest

from eventmesh.errors import UsageError
from eventmesh.review.repair.source_edit import Source

STUB = ["@Sold.upcaster(from_version=1)", "def up(data):", "    return data"]

UNUSUAL = '''\
# encoding: {encoding}
"""ä — 😀\tversion=1"""
from eventmesh import Event; x = {{"version": 1}}\t# version=1
@final
class   Sold ( Event, name = "shop.größe",
    # version=1
    version = 1 ,key= "id"  ) :
    id : str ; ä: str = "version=1"
    \f
    def version(self): return 1
'''


def read(folder: Path, text: str | bytes) -> Source:
    path = folder / "contracts.py"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Source.read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_raising_a_version_changes_no_other_byte(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    text = UNUSUAL.format(encoding="utf-8").replace("\n", newline)
    source = read(tmp_path, text.encode(encoding))
    source.with_version("Sold", 1, 2).write()
    expected = text.replace("version = 1 ,", "version = 2 ,").encode(encoding)
    assert source.path.read_bytes() == expected


def test_a_file_keeps_its_encoding(tmp_path: Path) -> None:
    text = UNUSUAL.format(encoding="latin-1").replace("— 😀", "")
    source = read(tmp_path, text.encode("latin-1"))
    stub = [*STUB, "    # — not in latin-1"]
    changed = source.with_version("Sold", 1, 10).with_upcaster("Sold", 1, stub)
    changed.write()
    raw = source.path.read_bytes()
    assert raw.startswith(text.replace("version = 1 ,", "version = 10 ,").encode("latin-1"))
    assert b"# \\u2014 not in" in raw


def test_an_upcaster_is_inserted_below_its_class(tmp_path: Path) -> None:
    before = 'class Sold(Event, name="shop.sold", version=2):\n    id: str'
    after = "\n\n\nservice = Service('shop')"
    source = read(tmp_path, before + after)
    added = "\n\n\n" + "\n".join(STUB)
    assert source.with_upcaster("Sold", 1, STUB).text == before + added + after


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_upcaster_after_a_last_line_without_newline_starts_on_its_own_line(
    tmp_path: Path, newline: str
) -> None:
    source = read(tmp_path, f"x = 1{newline}class Sold(Event, version=2): pass")
    changed = source.with_upcaster("Sold", 1, STUB)
    lines = ["x = 1", "class Sold(Event, version=2): pass", "", "", *STUB, ""]
    assert changed.text == newline.join(lines)


def test_the_upcaster_of_a_nested_class_is_inserted_beside_it(tmp_path: Path) -> None:
    source = read(tmp_path, "class Shop:\n    class Sold(Event, version=1):\n        id: str\n")
    changed = source.with_version("Shop.Sold", 1, 2).with_upcaster("Shop.Sold", 1, STUB)
    assert "version=2" in changed.text
    assert "\n\n    @Sold.upcaster(from_version=1)\n    def up(data):\n" in changed.text


def test_an_existing_upcaster_is_not_inserted_again(tmp_path: Path) -> None:
    source = read(tmp_path, "class Sold(Event, version=2):\n    id: str\n")
    once = source.with_upcaster("Sold", 1, STUB)
    assert once.with_upcaster("Sold", 1, STUB) is once


@pytest.mark.parametrize(
    "text",
    [
        "V = 1\nclass Sold(Event, version=V): ...",
        "class Sold(Event, version=True): ...",
        "class Sold(Event, version=3): ...",
        "class Sold(Event, version=+1): ...",
        "class Sold(Event): ...",
        "class Sold(Event, **{'version': 1}): ...",
        "class Sold(Event, version='1'): ...",
    ],
)
def test_a_version_that_is_not_the_expected_literal_is_left_to_its_author(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(UsageError, match="by hand"):
        read(tmp_path, text).with_version("Sold", 1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "class Other(Event, version=1): ...",
        "if x:\n    class Sold(Event, version=1): ...\nclass Sold(Event, version=1): ...",
        "def f():\n    class Sold(Event, version=1): ...",
    ],
)
def test_a_class_that_is_missing_local_or_ambiguous_is_left_to_its_author(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(UsageError, match="by hand"):
        read(tmp_path, text).with_version("Sold", 1, 2)


@pytest.mark.parametrize(
    "raw", [b"class Sold(:", b"x = '\xff'", b"# encoding: nonsense\n", b"x = 1\0", b"(" * 5000]
)
def test_a_file_that_is_not_valid_python_is_rejected(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(UsageError, match=r"contracts\.py"):
        read(tmp_path, raw)


def test_a_folder_cannot_be_read_as_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Source.read(tmp_path)
