"""Editing a user's Python file: a version number is replaced, or an upcaster is added.

Positions come from the syntax tree, and the edit is made in the text at these positions, so that
everything else, comments included, stays as it is byte for byte. The result is parsed again before
it is written.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eventmesh.errors import UsageError


@dataclass(frozen=True, slots=True)
class Source:
    """A Python file, with an edit applied or not."""

    path: Path
    text: str
    encoding: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; UsageError if that fails, or it is not valid Python."""
        try:
            raw = path.read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
            text = raw.decode(encoding)
            if text.encode(encoding) != raw:
                raise UsageError(f"{path} was not changed: its encoding {encoding} is ambiguous.")
            source = cls(path, text, encoding)
            source.tree()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UsageError(f"{path} was not changed: it is not valid Python: {error}.") from None
        return source

    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    def write(self) -> None:
        """Write the file back; UsageError if that is not allowed."""
        try:
            self.path.write_bytes(self.text.encode(self.encoding))
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}.") from None

    def with_version(self, name: str, old: int, new: int) -> Self:
        """The file with `version=<new>` in the class of this qualified name.

        UsageError if the old version is not written there as a literal number.
        """
        keyword = next((k for k in self._class(name).keywords if k.arg == "version"), None)
        value = keyword and keyword.value
        if not isinstance(value, ast.Constant) or value.value != old or type(value.value) is bool:
            line = self._class(name).lineno
            raise UsageError(
                f"{self.path}, line {line}: the class {name} does not have version={old} as a "
                f"literal number. Make it version {new} by hand, then run the check with --fix "
                f"again."
            )
        lines = self._lines()
        start, end = _offset(lines, value.lineno, value.col_offset), value.end_col_offset
        assert value.end_lineno == value.lineno  # noqa: S101  # a number is on one line
        stop = _offset(lines, value.lineno, end or value.col_offset)
        data = b"".join(lines)
        return self._with(data[:start] + str(new).encode() + data[stop:])

    def with_upcaster(self, name: str, from_version: int, stub: Sequence[str]) -> Self:
        """The file with these lines below the class, unless it has such an upcaster."""
        if self._has_upcaster(name.rpartition(".")[2], from_version):
            return self
        node, lines = self._class(name), self._lines()
        end = node.end_lineno or node.lineno
        feed = "\r\n" if lines[0].endswith(b"\r\n") else "\n"
        indent = " " * node.col_offset
        blank = [""] if node.col_offset else ["", ""]
        added = feed.join([*blank, *(f"{indent}{line}" if line else "" for line in stub), ""])
        before = b"".join(lines[:end])
        if not before.endswith((b"\n", b"\r")):
            before += feed.encode()
        return self._with(before + self._encodable(added).encode() + b"".join(lines[end:]))

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.encode("ascii", "backslashreplace").decode()
        return text

    def _with(self, data: bytes) -> Self:
        made = type(self)(self.path, data.decode(), self.encoding)
        made.tree()  # raises unless the result is valid Python
        return made

    def _lines(self) -> list[bytes]:
        """The lines in UTF-8, in which `ast` counts columns, whatever the encoding of the file."""
        return self.text.encode().splitlines(keepends=True)

    def _class(self, name: str) -> ast.ClassDef:
        found = [node for path, node in _classes(self.tree().body) if path == name]
        if len(found) != 1:
            times = "more than once" if found else "not"
            raise UsageError(
                f"{self.path} was not changed: the class {name} is {times} declared in it. Change "
                f"it by hand."
            )
        return found[0]

    def _has_upcaster(self, name: str, from_version: int) -> bool:
        return any(
            isinstance(call, ast.Call)
            and ast.unparse(call.func).endswith(f"{name}.upcaster")
            and any(ast.unparse(k.value) == str(from_version) for k in call.keywords)
            for node in ast.walk(self.tree())
            if isinstance(node, ast.FunctionDef)
            for call in node.decorator_list
        )


def _classes(body: Sequence[ast.AST], path: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """All classes outside functions, with their qualified names."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield f"{path}{node.name}", node
            yield from _classes(node.body, f"{path}{node.name}.")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _classes(list(ast.iter_child_nodes(node)), path)


def _offset(lines: Sequence[bytes], line: int, column: int) -> int:
    return sum(map(len, lines[: line - 1])) + column
