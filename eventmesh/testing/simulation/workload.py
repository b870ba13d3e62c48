"""What a simulation does with the services: the file of a user, or messages that are generated.

A workload's file has a coroutine function, and perhaps one that declares predicates:

    async def workload(mesh):
        await mesh.publish(OrderPlaced(order_id=1, amount=10))

    def predicates(mesh):
        @mesh.always
        def nobody_owes(read): ...

Without a file, messages are generated of each model that starts the work of the services: they
subscribe to it, and none of them publishes it. Generated messages are valid, and no more: a handler
may well reject them, so that dead letters are not a failure then.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from eventmesh.contracts.message import Command, Message, identity_of
from eventmesh.errors import EventMeshError, UsageError
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.service import Publisher
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.definition import command_of
from eventmesh.testing.mesh.base import Mesh

MESSAGES = 3
"""How many messages are generated of each model."""


@dataclass(frozen=True)
class Workload:
    """What is done in each run. `publishes` are the models of generated messages."""

    run: Callable[[Mesh], Awaitable[None]]
    predicates: Callable[[Mesh], Any] = lambda _: None
    publishes: tuple[type[Message], ...] = ()

    def body(self, services: Sequence[Service], workers: int) -> Callable[[Mesh], Awaitable[None]]:
        """One run: start so many workers of each service, then do the work."""

        async def run(mesh: Mesh) -> None:
            self.predicates(mesh)
            await mesh.start(*services, workers=workers)
            await self.run(mesh)

        return run


def load_workload(path: Path) -> Workload:
    """The workload of a file. UsageError where it has none, or cannot be loaded."""
    module = _load(path)
    run = getattr(module, "workload", None)
    if not inspect.iscoroutinefunction(run):
        raise UsageError(
            f"{path} has no workload: write `async def workload(mesh)` in it, which publishes "
            f"messages with `await mesh.publish(…)`."
        )
    predicates = getattr(module, "predicates", lambda _: None)
    for name, function in (("workload", run), ("predicates", predicates)):
        if not callable(function) or not _takes_mesh(function):
            raise UsageError(f"{name} in {path} must be a function of one argument: {name}(mesh).")
    if inspect.iscoroutinefunction(predicates):
        raise UsageError(f"predicates in {path} is a coroutine function: write it with `def`.")

    async def told(mesh: Mesh) -> None:
        try:
            await run(mesh)
        except (AssertionError, EventMeshError):
            raise
        except Exception as error:
            raise UsageError(_said(error, path, "raised")) from error

    return Workload(told, predicates)


def _takes_mesh(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"There is no file {path}: --workload names a Python file.")
    spec = importlib.util.spec_from_file_location("eventmesh_workload", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file: --workload names one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except EventMeshError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(_said(error, path, "cannot be loaded, because it raised")) from error
    return module


def _said(error: BaseException, path: Path, verb: str) -> str:
    """What the file raised, with the innermost line in it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    place = f", line {lines[-1]}" if lines else ""
    text = " ".join(str(error).split())
    return f"The workload {path}{place} {verb} {type(error).__name__}: {text or 'nothing more'}."


def generated(services: Sequence[Service]) -> Workload:
    """Messages of what starts the work of these services, the same each time. UsageError where
    nothing does, or where no message can be generated."""
    models = _starting(services)
    if not models:
        names = ", ".join(service.name for service in services)
        raise UsageError(
            f"Nothing from outside starts work in {names}: write what is to be done in a file with "
            f"`async def workload(mesh)`, and name it with --workload."
        )
    with _hypothesis_leaving_nothing():
        messages = [message for model in models for message in _drawn(model)]

    async def run(mesh: Mesh) -> None:
        for message in messages:
            publishing = (each for each in services if each.registry.publishes(type(message)))
            sender = next(publishing, None)
            if sender is None:
                await mesh.publish(message)
            else:  # through its outbox, whose messages are counted
                await Publisher(sender, type(message)).publish(message)

    return Workload(run, publishes=tuple(models))


def _starting(services: Sequence[Service]) -> list[type[Message]]:
    """The models that these services take and none of them publishes. Where there are none, the
    commands that neither a handler returns nor a saga sends: a service may have a publisher of them
    for a program."""
    handlers = [handler for service in services for handler in service.handlers.values()]
    taken = {
        name: model
        for handler in handlers
        for name, model in handler.models.items()
        if not model.__is_internal__
    }
    published = {name for service in services for name in service.registry.published_names()}
    outside = [model for name, model in sorted(taken.items()) if name not in published]
    if outside:
        return outside
    inside = {identity_of(model).name for handler in handlers for model in handler.returns}
    for service in services:
        for saga in service.sagas.values():
            if isinstance(saga, Coordinator):
                inside |= _sent_by(saga)
    return [
        model
        for name, model in sorted(taken.items())
        if issubclass(model, Command) and name not in inside
    ]


def _sent_by(saga: Coordinator) -> set[str]:
    """The names of the commands of a saga."""
    sending = [
        each
        for step in saga.definition.steps.values()
        for each in (step.command, None if step.undoing is None else step.undoing.command)
        if each is not None
    ]
    return {identity_of(command_of(each, saga.definition.name)).name for each in sending}


@contextmanager
def _hypothesis_leaving_nothing() -> Iterator[None]:
    """While the context is open, Hypothesis keeps what it computes in a folder that is deleted
    afterwards, unless the project has one for it already."""
    from hypothesis.configuration import set_hypothesis_home_dir  # as in `_drawn`

    if Path(".hypothesis").exists() or "HYPOTHESIS_STORAGE_DIRECTORY" in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="eventmesh-") as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def _drawn(model: type[Message]) -> list[Message]:
    from hypothesis import HealthCheck, Phase, given, settings  # only where messages are generated

    from eventmesh.testing.workloads import from_message

    found: list[Message] = []

    @settings(
        max_examples=MESSAGES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(from_message(model))
    def draw(message: Message) -> None:
        found.append(message)

    with warnings.catch_warnings():
        # On Python 3.14, hypothesis 6.170 warns of an object of its own.
        warnings.filterwarnings("ignore", "It looks like .register_random. was passed")
        draw()
    return found
