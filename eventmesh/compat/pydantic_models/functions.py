"""What a schema cannot say: functions that check or write values, told apart by what they do.

A function is the same as another if name, source, what it closes over and what it looks up are
the same; layout and comments do not count, nor does the version of Python. Of a value that has no
text of its own only the type counts.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from inspect import getattr_static
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from operator import itemgetter
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    GenericAlias,
    MappingProxyType,
    MethodType,
    NoneType,
    SimpleNamespace,
    UnionType,
)
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from eventmesh.compat.pydantic_models.earlier_digests import earlier_digest
from eventmesh.compat.pydantic_models.function_sources import find, told
from eventmesh.compat.pydantic_models.surroundings import codes, surroundings, unwrapped

_LIBRARIES = ("pydantic.", "pydantic_core.", "pydantic_extra_types.", "annotated_types.")
_SHOWN_BY_REPR = (
    *(bool, int, float, complex, Decimal, Fraction, str, bytes, UUID, range),
    *(NoneType, EllipsisType, timedelta, timezone, ZoneInfo),
    *(IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network),
)
_FUNCTIONS = (FunctionType, MethodType, functools.partial, functools._lru_cache_wrapper)
_INTERESTING = (bool, int, float, str, re.Pattern, Decimal, date, time, timedelta, UUID)
_MOST_EXACT = 2**53
_NOT_RUN = {"metadata", "serialization", "cls", "config"}  # when reading
_DEPTH = 5


def is_library(function: Any) -> bool:
    """Whether this is pydantic's own, whose schema says what it does."""
    owner = getattr(function, "__self__", None)
    encoder = getattr(owner, "encoder", None)
    if encoder is not None and (
        type(owner).__name__ == "EncodedStr" or not _is_of_library(encoder)
    ):
        return False  # what can be decoded is no format
    return _is_of_library(unwrapped(function))


def _is_of_library(thing: Any) -> bool:
    return f"{getattr(thing, '__module__', None) or ''}.".startswith(_LIBRARIES)


def fingerprint(function: Any) -> str:
    """Name and digest of a function; the digest is another when it may do something else.

    Between them stands the digest of earlier releases: `checks` compares with what they froze.
    """
    inner = unwrapped(function)
    name = getattr(inner, "__name__", type(inner).__name__)
    owner = getattr(getattr(function, "__self__", None), "encoder", "")
    owner_name = getattr(owner, "__qualname__", "")
    text = "\n".join([owner_name, *_told(function, set(), 0)])
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{name}:{earlier_digest(function, owner_name)}.{digest}"


def missing_of(enumeration: type[Enum]) -> Any:
    """The user's function by which an enumeration takes other values than its own, if it has one.

    That of Python's flags is none: what they take is known.
    """
    function = enumeration._missing_
    of_python = (unwrapped(Enum._missing_), unwrapped(Flag._missing_))
    return None if unwrapped(function) in of_python else function


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
        elif isinstance(found, Decimal):
            if found.is_finite() and abs(found) < _MOST_EXACT:
                near = int(found)
                values += [near, near + 1, near - 1]
            values.append(str(found))
        elif isinstance(found, date | timedelta):
            values += [*map(to_jsonable_python, _near(found))]
        else:
            values.append(to_jsonable_python(found))
    return values, [text for text in patterns if set(text) & set("[](){}^$\\+*.|")]


def _told(function: Any, seen: set[int], depth: int) -> Iterator[str]:
    """Lines that are the same for functions that do the same."""
    if isinstance(function, functools.partial):
        yield from _told_value("args", [function.args, function.keywords], seen, depth)
    inner = unwrapped(function)
    if id(inner) in seen or depth > _DEPTH:
        return
    seen.add(id(inner))
    if not isinstance(inner, FunctionType):
        yield getattr(inner, "__qualname__", type(inner).__qualname__)
        yield from _told_value("self", getattr(inner, "__dict__", None), seen, depth)
        called = getattr_static(type(inner), "__call__", None)
        if isinstance(called, FunctionType):
            yield from _told(called, seen, depth + 1)
        return
    node = find(inner)
    if node is None:
        for code in codes(inner.__code__):
            constants = [each for each in code.co_consts if not isinstance(each, CodeType)]
            yield from _told_value("code", [code.co_names, constants], seen, depth)
    else:
        yield " ".join(told(node))
    for name, value in surroundings(inner):
        yield from _told_value(name, value, seen, depth)


def _told_value(name: str, value: Any, seen: set[int], depth: int) -> Iterator[str]:
    """Lines that are the same for equal values, in every process and on every platform."""
    kind = type(value).__qualname__
    if type(value).__module__ == "typing" or isinstance(value, GenericAlias | UnionType):
        return  # an annotation, which each version of Python tells otherwise
    if isinstance(value, re.Pattern):
        yield f"{name}={value.pattern!r} {value.flags}"
    elif isinstance(value, Enum):
        yield f"{name}={kind}"
        yield from _told_value(name, value.value, seen, depth + 1)
    elif isinstance(value, date | time):
        yield f"{name}={kind} {value.isoformat()}"
    elif isinstance(value, PurePath):
        yield f"{name}=Path {value.as_posix()!r}"
    elif isinstance(value, _SHOWN_BY_REPR):
        yield f"{name}={kind} {value!r}"
    elif isinstance(value, _FUNCTIONS):
        yield f"{name}="
        yield from _told(value, seen, depth + 1)
    elif isinstance(value, type | BuiltinFunctionType):
        yield f"{name}={value.__qualname__}"
    else:
        yield f"{name}={kind}"
        for part, below in _parts(value):
            yield from _told_value(part, below, seen, depth + 1)
        yield "end"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, in an order that is always the same."""
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, dict | MappingProxyType):
        yield from sorted(((_text(key), below) for key, below in value.items()), key=itemgetter(0))
    elif isinstance(value, list | tuple | deque):
        yield from (("", each) for each in value)
    elif isinstance(value, set | frozenset):
        yield from sorted((("", each) for each in value), key=lambda each: _text(each[1]))
    elif is_dataclass(value):
        yield from ((each.name, getattr(value, each.name, None)) for each in fields(value))
    elif isinstance(value, BaseModel):
        yield from ((name, getattr(value, name, None)) for name in type(value).model_fields)


def _text(value: Any) -> str:
    return "\n".join(_told_value("", value, set(), 0))


def _mentioned(function: Any, seen: set[int], depth: int) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        yield from _scalars_in([function.args, function.keywords])
    inner = unwrapped(function)
    if id(inner) in seen or depth > _DEPTH:
        return
    seen.add(id(inner))
    if not isinstance(inner, FunctionType):
        yield from _scalars_in(getattr(inner, "__dict__", None))
        return
    for code in codes(inner.__code__):
        yield from _scalars_in(code.co_consts)
    for _, value in surroundings(inner):
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
    elif isinstance(value, Enum):
        yield from _scalars_in(value.value)
    elif value is None or isinstance(value, _INTERESTING):
        yield value


def _near(moment: date | timedelta) -> Iterator[date | timedelta]:
    """A point or a length of time, and those one day around it."""
    for days in (0, 1, -1):
        with suppress(OverflowError):
            yield moment + timedelta(days)
