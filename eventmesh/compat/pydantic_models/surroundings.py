"""What a function consists of: itself inside its wrappers, its code, and what it looks up."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any


def unwrapped(function: Any) -> Any:
    """The function inside partials, methods and decorators."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def surroundings(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function looks up outside of itself: what it closes over, its defaults, globals."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is empty until its function has been defined
            continue
    yield "defaults", [function.__defaults__, function.__kwdefaults__]
    for name in sorted({name for code in codes(function.__code__) for name in code.co_names}):
        value = function.__globals__.get(name)
        if value is not None and not isinstance(value, ModuleType | type):
            yield name, value


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)
