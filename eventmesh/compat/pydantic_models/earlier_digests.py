"""The digest of a function as earlier releases froze it, so that their lock files stay valid.

It took no notice of indentation, of blanks inside texts, and of values such as a `Decimal`. It is
only compared with what was frozen by itself (see `checks`), and must never change.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from eventmesh.compat.pydantic_models.surroundings import codes, surroundings, unwrapped

_SCALARS = (bool, int, float, str, bytes, complex, type(None))
_DEPTH = 5
_RESULT = re.compile(r"->[^:]+:")  # names the class, which may be renamed


def earlier_digest(function: Any, owner: str) -> str:
    """The digest of a function that was made by this encoder, or by none."""
    text = "\n".join([owner, *_told(function, set(), 0)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _told(function: Any, seen: set[int], depth: int) -> Iterator[str]:
    if isinstance(function, functools.partial):
        yield from _told_value("args", [function.args, function.keywords], seen, depth)
    inner = unwrapped(function)
    if id(inner) in seen or depth > _DEPTH:
        return
    seen.add(id(inner))
    if not isinstance(inner, FunctionType):
        yield f"{type(inner).__module__}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
        yield from _told_value("self", getattr(inner, "__dict__", None), seen, depth)
        return
    yield _source(inner)
    for name, value in surroundings(inner):
        yield from _told_value(name, value, seen, depth)


def _told_value(name: str, value: Any, seen: set[int], depth: int) -> Iterator[str]:
    if isinstance(value, re.Pattern):
        yield f"{name}={value.pattern!r}"
    elif isinstance(value, _SCALARS):
        yield f"{name}={value!r}"
    elif isinstance(value, dict):
        yield f"{name}={{"
        for key in sorted(value, key=repr):
            yield from _told_value(repr(key), value[key], seen, depth + 1)
    elif isinstance(value, list | tuple):
        yield f"{name}=["
        for entry in value:
            yield from _told_value("", entry, seen, depth + 1)
    elif isinstance(value, set | frozenset):
        yield f"{name}={sorted(map(repr, value))}"
    elif isinstance(value, FunctionType):
        yield from _told(value, seen, depth + 1)


def _source(function: FunctionType) -> str:
    try:
        lines = inspect.getsource(function).splitlines()
    except (OSError, TypeError):
        all_codes = list(codes(function.__code__))
        constants = [c for code in all_codes for c in code.co_consts if isinstance(c, _SCALARS)]
        return repr([[code.co_names for code in all_codes], constants])
    kept = [line for line in lines if not line.lstrip().startswith(("#", "@"))]
    return _RESULT.sub(":", "".join("".join(kept).split()), count=1)
