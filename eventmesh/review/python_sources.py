"""Reading a project's Python files without importing them: imports, classes and services.

The files are parsed to syntax trees. Nothing in them is run, and each is read once.
"""

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
"""A larger file is generated or is data, and is reported instead of parsed."""

_IMPORTERS = {"import_module", "__import__", "resolve_name", "run_module"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement, or call of `import_module`."""

    line: int
    module: str
    names: tuple[tuple[str, str], ...] = ()
    """Names imported from the module, each with its local name; `*` for all of them."""
    level: int = 0
    """The number of leading dots of a relative import."""
    alias: str = ""
    """The local name of the module itself, for a plain `import`."""

    def from_module(self, package: str) -> str:
        """The absolute name of the module, if this import is in a module of `package`.

        Empty for a relative import beyond the top-level package, which Python rejects too.
        """
        if not self.level:
            return self.module
        parents = package.split(".")
        if self.level > len(parents):
            return ""
        return ".".join([*parents[: len(parents) - self.level + 1], *filter(None, [self.module])])

    def targets(self, package: str) -> list[str]:
        """The absolute names of everything that is imported."""
        module = self.from_module(package)
        taken = [name for name, _ in self.names if name != "*"] if module else []
        return [f"{module}.{name}" for name in taken] or [module]

    def gives(self, name: str) -> bool:
        """Whether this import may define the name in its module."""
        given = {alias for _, alias in self.names} or {self.alias}
        return name in given or "*" in given


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its imports, and the lines of its classes and services by name."""

    imports: tuple[Import, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    services: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""
    """Why the file could not be read; otherwise empty."""


class Sources:
    """The Python files of one project, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._read: dict[Path, Source] = {}

    def read(self, path: Path) -> Source:
        if path not in self._read:
            self._read[path] = _read(path)
        return self._read[path]

    def place(self, path: Path, line: int = 1) -> Place:
        """The place, relative to the root if it is below it."""
        if path.is_relative_to(self.root):
            path = path.relative_to(self.root)
        return Place(path.as_posix(), line)

    def place_of_class(self, declared: type[Any]) -> Place | None:
        """The place where the class is declared, if it has a file."""
        file = getattr(sys.modules.get(declared.__module__), "__file__", None)
        if file is None:
            return None
        path = Path(file)
        return self.place(path, self.read(path).classes.get(declared.__qualname__, 1))


def python_files(folder: Path, trouble: list[tuple[Path, str]]) -> Iterator[Path]:
    """The Python files below a folder, in order, each once; symbolic links are followed.

    Folders that cannot be read are added to `trouble`, with the reason.
    """
    seen: set[str] = set()

    def note_unreadable(error: OSError) -> None:
        trouble.append((Path(error.filename), error.strerror or repr(error)))

    for where, folders, files in os.walk(folder, onerror=note_unreadable, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a symbolic link back to a parent
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__pycache__"
        )
        yield from (Path(where, name) for name in sorted(files) if name.endswith(".py"))


def _read(path: Path) -> Source:
    try:
        if not path.is_file():  # reading a pipe would block
            return Source(trouble="it is not a regular file, or a broken symbolic link")
        if path.stat().st_size > MAX_BYTES:
            return Source(trouble=f"it is larger than {MAX_BYTES:,} bytes")
        text = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes, which the author sees anyway
            return _scan(ast.parse(text))
    except OSError as error:
        return Source(trouble=f"it cannot be read ({error.strerror})")
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        return Source(trouble=f"it is not valid Python ({error.msg}{where})")
    except (ValueError, RecursionError, MemoryError) as error:
        return Source(trouble=f"it is not valid Python ({error})")


def _scan(tree: ast.Module) -> Source:
    imports: list[Import] = []
    classes: dict[str, int] = {}
    services: dict[str, int] = {}
    # Not by recursion: the parser accepts code that is nested deeper than our stack allows.
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
    """The import made by `importlib.import_module("…")` and similar calls with a constant."""
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
    """The service declared by `Service("orders", …)`, or by a class whose name ends in Service."""
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
