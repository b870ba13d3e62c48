"""What is written in a project's Python files: read as text, without running any of it."""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventmesh.contracts.problem import Place

MAX_BYTES = 2_000_000
"""Of a larger file nobody reads the imports, and neither do we."""

_IMPORTERS = {"import_module", "__import__", "resolve_name", "run_module"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import, as it is written."""

    line: int
    module: str
    names: tuple[tuple[str, str], ...] = ()
    """What is taken out of the module, each with the name that it is given; `*` for all."""
    level: int = 0
    """How many dots stand before the module."""
    alias: str = ""
    """The name that the module itself is given, where nothing is taken out of it."""

    def from_module(self, package: str) -> str:
        """The full name of the module, where this stands in one of `package`; empty for one that
        is above everything, which Python refuses too."""
        if not self.level:
            return self.module
        parents = package.split(".")
        if self.level > len(parents):
            return ""
        return ".".join([*parents[: len(parents) - self.level + 1], *filter(None, [self.module])])

    def targets(self, package: str) -> list[str]:
        """The full names of all that is imported."""
        module = self.from_module(package)
        taken = [name for name, _ in self.names if name != "*"] if module else []
        return [f"{module}.{name}" for name in taken] or [module]

    def gives(self, name: str) -> bool:
        """Whether this is how a module comes by this name."""
        given = {alias for _, alias in self.names} or {self.alias}
        return name in given or "*" in given


@dataclass(frozen=True, slots=True)
class Source:
    """One file: what it imports, and on which lines it declares what."""

    imports: tuple[Import, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    services: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""
    """Why nothing is known of it; empty for a file that could be read."""


class Sources:
    """The files of one project, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._read: dict[Path, Source] = {}

    def read(self, path: Path) -> Source:
        """What is written in this file."""
        if path not in self._read:
            self._read[path] = _read(path)
        return self._read[path]

    def place(self, path: Path, line: int = 1) -> Place:
        """The place as seen from the root, if it is below it."""
        if path.is_relative_to(self.root):
            path = path.relative_to(self.root)
        return Place(path.as_posix(), line)

    def place_of_class(self, declared: type[Any]) -> Place | None:
        """Where this class is declared."""
        file = getattr(sys.modules.get(declared.__module__), "__file__", None)
        if file is None:
            return None
        path = Path(file)
        return self.place(path, self.read(path).classes.get(declared.__qualname__, 1))


def python_files(folder: Path, trouble: list[tuple[Path, str]]) -> Iterator[Path]:
    """The Python files below, through links to folders too, in order; none of them twice.

    What cannot be looked into is added to `trouble`.
    """
    seen: set[str] = set()

    def refused(error: OSError) -> None:
        trouble.append((Path(error.filename), error.strerror or repr(error)))

    for where, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__pycache__"
        )
        yield from (Path(where, name) for name in sorted(files) if name.endswith(".py"))


def _read(path: Path) -> Source:
    try:
        if not path.is_file():  # nor is a pipe one, which would be waited for
            return Source(trouble="it is no file, or a link that leads nowhere")
        if path.stat().st_size > MAX_BYTES:
            return Source(trouble=f"it is larger than {MAX_BYTES:,} bytes")
        text = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of its style is no matter here
            return _scan(ast.parse(text))
    except OSError as error:
        return Source(trouble=f"it cannot be read ({error.strerror})")
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        return Source(trouble=f"it is no Python ({error.msg}{where})")
    except (ValueError, RecursionError, MemoryError) as error:
        return Source(trouble=f"it is no Python ({error})")


def _scan(tree: ast.Module) -> Source:
    imports: list[Import] = []
    classes: dict[str, int] = {}
    services: dict[str, int] = {}
    # Not by recursion: what the parser takes may be nested deeper than our stack.
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        match node:
            case ast.ClassDef(name=name, lineno=line):
                classes[prefix + name] = line
                prefix += f"{name}."
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                prefix += f"{name}.<locals>."
            case ast.Import() | ast.ImportFrom():
                imports += _imports(node)
            case ast.Call():
                imports += _called_import(node)
                services |= _declared_service(node)
        pending += ((child, prefix) for child in ast.iter_child_nodes(node))
    return Source(tuple(sorted(imports, key=lambda each: each.line)), classes, services)


def _imports(node: ast.Import | ast.ImportFrom) -> list[Import]:
    if isinstance(node, ast.Import):
        return [
            Import(node.lineno, each.name, alias=each.asname or each.name.partition(".")[0])
            for each in node.names
        ]
    names = tuple((each.name, each.asname or each.name) for each in node.names)
    return [Import(node.lineno, node.module or "", names, node.level)]


def _called_import(call: ast.Call) -> list[Import]:
    """`importlib.import_module("…")` and its like, where they are given a text."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    named = call.args[0] if call.args else given.get("name")
    if _called(call) not in _IMPORTERS or not isinstance(named, ast.Constant):
        return []
    if not isinstance(named.value, str):
        return []
    name = named.value.partition(":")[0]
    module = name.lstrip(".")
    level = len(name) - len(module)
    package = call.args[1] if len(call.args) > 1 else given.get("package")
    if level and isinstance(package, ast.Constant) and isinstance(package.value, str):
        module, level = Import(0, module, level=level).from_module(package.value), 0
    return [Import(call.lineno, module, level=level)]


def _declared_service(call: ast.Call) -> dict[str, int]:
    """`Service("orders", …)`, or a class of the user's own whose name ends so."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    named = call.args[0] if call.args else given.get("name")
    if not _called(call).endswith("Service") or not isinstance(named, ast.Constant):
        return {}
    return {named.value: call.lineno} if isinstance(named.value, str) else {}


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
