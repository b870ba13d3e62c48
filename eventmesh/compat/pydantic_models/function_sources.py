"""The source of a function as what it says, whatever its layout, its comments and its docstring.

It is told from the syntax tree: an `if` that moves out of another is another rule, and so is a
blank inside a text; line breaks, quotes, brackets and commas that a formatter may change are not.
The tree is written without what only some versions of Python have in it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_Spot = tuple[tuple[int, int], tuple[int, int]]

_END = object()
_NOT_TOLD = {"ctx", "kind", "type_comment"}
_NOT_TOLD_OF_ITSELF = {"decorator_list", "returns"}  # the schema has the one; a class is renamed


def find(function: FunctionType) -> _Node | None:
    """The function in the syntax tree of its file; None where that is not there."""
    try:
        lines, _ = inspect.findsource(function)
        known = _functions_by_line("".join(lines))
    except (OSError, TypeError, ValueError, SyntaxError, RecursionError):
        return None
    code = function.__code__
    found = [each for each in known.get(code.co_firstlineno, ()) if _name(each) == code.co_name]
    if len(found) > 1:  # lambdas on one line: it is the innermost around the code, found last
        spots = list(_spots(code))
        found = [each for each in found if spots and _is_around(each, spots)][-1:]
    return found[0] if found else None


def told(node: _Node) -> Iterator[str]:
    """Words that are the same for sources that say the same."""
    ahead: list[Any] = [node]
    while ahead:  # no recursion: an expression may be deep
        part = ahead.pop()
        if part is _END:
            yield ")"
        elif isinstance(part, ast.AST):
            yield f"{type(part).__name__}("
            hidden = _NOT_TOLD | _NOT_TOLD_OF_ITSELF if part is node else _NOT_TOLD
            parts = sorted(
                (k, v)
                for k, v in ast.iter_fields(part)
                if k not in hidden and v != [] and v is not None
            )
            ahead += [
                _END,
                *(each for pair in reversed(parts) for each in (pair[1], _Label(pair[0]))),
            ]
        elif isinstance(part, list):
            yield "("
            ahead += [_END, *(each for each in reversed(part) if not _is_text_alone(each))]
        else:
            yield str(part) if isinstance(part, _Label) else repr(part)


class _Label(str):
    """The name of a part, which is not quoted as the texts of the source are."""

    __slots__ = ()


def _is_text_alone(node: Any) -> bool:
    """A docstring, or another text without effect."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@lru_cache(maxsize=16)
def _functions_by_line(source: str) -> dict[int, list[_Node]]:
    """The functions of a file by the line where each begins, from the outside to the inside."""
    found: dict[int, list[_Node]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Node):
            line = min([node.lineno, *(each.lineno for each in _decorators(node))])
            found.setdefault(line, []).append(node)
    return found


def _decorators(node: _Node) -> list[ast.expr]:
    return [] if isinstance(node, ast.Lambda) else node.decorator_list


def _name(node: _Node) -> str:
    return "<lambda>" if isinstance(node, ast.Lambda) else node.name


def _spots(code: CodeType) -> Iterator[_Spot]:
    """Where the instructions of this code stand; nothing if Python was told not to note it."""
    for line, end_line, column, end_column in code.co_positions():
        if line and end_line and column is not None and end_column:
            yield (line, column), (end_line, end_column)


def _is_around(node: _Node, spots: Sequence[_Spot]) -> bool:
    first = (node.lineno, node.col_offset)
    last = (node.end_lineno or 0, node.end_col_offset or 0)
    return all(first <= begin and end <= last for begin, end in spots)
