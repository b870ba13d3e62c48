"""Why a function in a service's modules is a handler, or is not.

A handler that nobody calls is a common and silent mistake: the decorator is missing, or the module
with the handler is never imported. So the service's own files are searched for functions that take
a message. Imported modules are looked at as they are; other files are only parsed, because
importing them might do anything.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from eventmesh.review.foreign_imports import Home, module_at
from eventmesh.review.python_sources import python_files
from eventmesh.runtime.declaring.handler import messages_taken
from eventmesh.runtime.declaring.reaction import Reaction
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.authoring import Saga
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.definition import Definition

_DECORATORS = ("subscriber", "reaction")


@dataclass(frozen=True, slots=True)
class FunctionDescription:
    """A function, or a saga, and what it has to do with messages. `subscription` is that of the
    handler that it is, None if it is not one."""

    module: str
    name: str
    subscription: str | None
    why: str


def describe_functions(service: Service, home: Home | None) -> list[FunctionDescription]:
    """The functions of the service's modules that take messages, but for the parts of its sagas and
    the undos of its reactions, sorted; `home` is where its code is, None for a service without
    files."""
    if home is None:
        return []
    owned = _Uses(service)
    found: list[FunctionDescription] = []
    for file in python_files(home.path, []) if home.path.is_dir() else [home.path]:
        name = module_at(file, home.base)
        module = sys.modules.get(name)
        found += _imported(module, owned) if module else _not_imported(file, name, home)
    return sorted(found, key=lambda each: (each.module, each.name))


class _Uses:
    """What a service uses functions for."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.subscriptions = {
            id(handler.function): handler.subscription.name
            for handler in service.handlers.values()
            if handler.function is not None
        }
        self.sagas = {
            each.definition.name for each in service.sagas.values() if isinstance(each, Coordinator)
        }
        self.others = {id(reaction.undo_function) for reaction in service.reactions}
        """The undos of reactions and the parts of sagas, which are called although they are not
        handlers. Functions are told apart by their ids, because a callable object of the user's
        need not be hashable."""
        for coordinator in service.sagas.values():
            if isinstance(coordinator, Coordinator):
                self.others |= {id(each) for each in _functions_of(coordinator.definition)}


def _functions_of(definition: Definition) -> Iterator[Callable[..., Any]]:
    yield from definition.starts.values()
    yield from (definition.completed, definition.undone)
    for step in definition.steps.values():
        undo = None if step.undoing is None else step.undoing.command
        for function in (step.command, undo, step.fold, step.correlate):
            if function is not None:
                yield function


def _imported(module: ModuleType, uses: _Uses) -> Iterator[FunctionDescription]:
    members = sorted(vars(module).items())
    elsewhere = _handlers_of_others(members, uses.service)
    for name, member in members:
        if isinstance(member, Saga) and member.name not in uses.sagas:
            service = next((at for at, each in members if each is uses.service), "service")
            why = f"the saga is not included: write {service}.include({name})"
            yield FunctionDescription(module.__name__, name, None, why)
        function = _own_function(member, module)
        if function is None:
            continue
        original = inspect.unwrap(function)
        subscription = uses.subscriptions.get(id(function), uses.subscriptions.get(id(original)))
        if subscription is not None:
            why = f"subscribes to {_names(uses.service.handlers[subscription].models)}"
            yield FunctionDescription(module.__name__, name, subscription, why)
        elif id(function) not in uses.others and (taken := messages_taken(original)):
            names = " | ".join(model.__name__ for model in taken)
            hint = "" if inspect.iscoroutinefunction(original) else "; it is not `async` either"
            undecorated = f"takes {names}, and is not decorated with @service.subscriber(){hint}"
            why = elsewhere.get(id(function), undecorated)
            yield FunctionDescription(module.__name__, name, None, why)


def _own_function(member: object, module: ModuleType) -> Callable[..., Any] | None:
    """The function that a member of a module is, if it was written there."""
    if isinstance(member, Reaction):
        member = member.function
    if not inspect.isfunction(member) or member.__module__ != module.__name__:
        return None
    return member


def _handlers_of_others(
    members: Sequence[tuple[str, object]], service: Service
) -> Mapping[int, str]:
    """Why functions are not handlers of this service: they are those of another in its modules."""
    return {
        id(handler.function): f"is a handler of another Service, {name} = Service({member.name!r})"
        for name, member in members
        if isinstance(member, Service) and member is not service
        for handler in member.handlers.values()
        if handler.function is not None
    }


def _names(models: Mapping[str, object]) -> str:
    return ", ".join(sorted(models))


def _not_imported(file: Path, module: str, home: Home) -> Iterator[FunctionDescription]:
    """Functions in a file that look like handlers."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        why = f"the module is not imported, and cannot be read: {error}"
        yield FunctionDescription(module, "", None, why)
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
            _is_ours(decorator) for decorator in node.decorator_list
        ):
            why = f"its module is never imported: import {module} where {home.service} is declared"
            yield FunctionDescription(module, node.name, None, why)


def _is_ours(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Attribute) and called.attr in _DECORATORS
