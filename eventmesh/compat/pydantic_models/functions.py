"""What a schema cannot say: functions that check or write values, told apart by what they do.

A function is the same as another if name, source, what it closes over and what it looks up are
the same; layout and comments do not count, nor does the version of Python.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from types import CodeType, FunctionType, ModuleType
from typing import Any

_LIBRARIES = ("pydantic.", "pydantic_core.", "pydantic_extra_types.", "annotated_types.")
_SCALARS = (bool, int, float, str, bytes, complex, type(None))
_NOT_RUN = {"metadata", "serialization", "cls", "config"}  # when reading
_DEPTH = 5
_RESULT = re.compile(r"->[^:]+:")  # names the class, which may be renamed


def is_library(function: Any) -> bool:
    """Whether this is pydantic's own, whose schema says what it does."""
    owner = getattr(function, "__self__", None)
    encoder = getattr(owner, "encoder", None)
    if encoder is not None and (
        type(owner).__name__ == "EncodedStr" or not _is_of_library(encoder)
    ):
        return False  # what can be decoded is no format
    return _is_of_library(_unwrapped(function))


def _is_of_library(thing: Any) -> bool:
    return f"{getattr(thing, '__module__', None) or ''}.".startswith(_LIBRARIES)


def fingerprint(function: Any) -> str:
    """Name and digest of a function; the digest is another when it may do something else."""
    inner = _unwrapped(function)
    name = getattr(inner, "__name__", type(inner).__name__)
    owner = getattr(getattr(function, "__self__", None), "encoder", "")
    text = "\n".join([getattr(owner, "__qualname__", ""), *_told(function, set(), 0)])
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def missing_of(enumeration: type[Enum]) -> Any:
    """The function by which an enumeration takes other values than its own, if it has one."""
    function = enumeration._missing_
    return None if _unwrapped(function) is _unwrapped(Enum._missing_) else function


def functions_of(model: Any) -> dict[str, Any]:
    """The functions of the user's that run where this model reads, by their fingerprints."""
    found: dict[str, Any] = {}
    ahead: list[Any] = [model.__pydantic_core_schema__]
    while ahead:
        part = ahead.pop()
        if isinstance(part, dict):
            ahead += [value for key, value in part.items() if key not in _NOT_RUN]
            functions = [missing_of(part["cls"])] if part.get("type") == "enum" else []
            if str(part.get("type", "")).startswith("function-") and "function" in part:
                functions.append(part["function"]["function"])
            for function in functions:
                if function is not None and not is_library(function):
                    found[fingerprint(function)] = function
        elif isinstance(part, list | tuple):
            ahead += part
    return found


def interests(function: Any) -> tuple[list[Any], list[str]]:
    """Values that a function may treat differently from others, and patterns it may look for."""
    values: list[Any] = []
    patterns: list[str] = []
    for found in _mentioned(function, set(), 0):
        if isinstance(found, re.Pattern):
            if isinstance(found.pattern, str):
                patterns.append(found.pattern)
        elif isinstance(found, str):
            values.append(found)
            patterns.append(found)
        elif found is None or isinstance(found, bool):
            values.append(found)
        elif isinstance(found, int | float):
            values += [found, found + 1, found - 1]
    return values, [text for text in patterns if set(text) & set("[](){}^$\\+*.|")]


def _unwrapped(function: Any) -> Any:
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def _told(function: Any, seen: set[int], depth: int) -> Iterator[str]:
    """Lines that are the same for functions that do the same."""
    if isinstance(function, functools.partial):
        yield from _told_value("args", [function.args, function.keywords], seen, depth)
    inner = _unwrapped(function)
    if id(inner) in seen or depth > _DEPTH:
        return
    seen.add(id(inner))
    if not isinstance(inner, FunctionType):
        yield f"{type(inner).__module__}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
        yield from _told_value("self", getattr(inner, "__dict__", None), seen, depth)
        return
    yield _source(inner)
    for name, value in _surroundings(inner):
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


def _mentioned(function: Any, seen: set[int], depth: int) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        yield from _scalars_in([function.args, function.keywords])
    inner = _unwrapped(function)
    if id(inner) in seen or depth > _DEPTH:
        return
    seen.add(id(inner))
    if not isinstance(inner, FunctionType):
        yield from _scalars_in(getattr(inner, "__dict__", None))
        return
    for code in _codes(inner.__code__):
        yield from _scalars_in(code.co_consts)
    for _, value in _surroundings(inner):
        yield from _scalars_in(value)
        for function_inside in _functions_in(value):
            yield from _mentioned(function_inside, seen, depth + 1)


def _functions_in(value: Any) -> Iterator[Any]:
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _functions_in(entry)


def _scalars_in(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from _scalars_in(entry)
    elif value is None or isinstance(value, bool | int | float | str | re.Pattern):
        yield value


def _surroundings(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function looks up outside of itself: what it closes over, its defaults, globals."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is empty until its function has been defined
            continue
    yield "defaults", [function.__defaults__, function.__kwdefaults__]
    for name in sorted({name for code in _codes(function.__code__) for name in code.co_names}):
        value = function.__globals__.get(name)
        if value is not None and not isinstance(value, ModuleType | type):
            yield name, value


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _source(function: FunctionType) -> str:
    try:
        lines = inspect.getsource(function).splitlines()
    except (OSError, TypeError):
        codes = list(_codes(function.__code__))
        constants = [c for code in codes for c in code.co_consts if isinstance(c, _SCALARS)]
        return repr([[code.co_names for code in codes], constants])
    kept = [line for line in lines if not line.lstrip().startswith(("#", "@"))]
    return _RESULT.sub(":", "".join("".join(kept).split()), count=1)
