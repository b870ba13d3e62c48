"""A saga as data: its steps with their undos, a pivot, and the order between them.

Nothing in this module runs. `authoring` builds these values from a class body and checks them;
`transition` reads them to decide what happens next. Because a definition is data, it can also be
drawn and checked without a broker or a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.errors import UsageError

MakeCommand = Callable[[Any], Command]
MakeUndo = Callable[[Any, Any], Command]

UNDO_SUFFIX = ":undo"
"""Marks the label of an undo command: `reserve:undo` undoes the step `reserve`."""


class Undo:
    """Compensates a step. Without `ok` it counts as done as soon as its command is sent."""

    def __init__(self, command: MakeUndo, ok: type[Event] | None) -> None:
        self.command = command
        self.ok = ok


class Step:
    """One command to one service, and the events that may answer it.

    A step is identified by its name in the class body.
    """

    name: str

    def __init__(
        self,
        command: MakeCommand,
        *,
        ok: type[Event],
        failed: Sequence[type[Event]],
        is_pivot: bool,
    ) -> None:
        self.command = command
        self.ok = ok
        self.failed = tuple(failed)
        self.is_pivot = is_pivot
        self.undoing: Undo | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        # `flow = reserve` binds a single step to a second name; the first one is the step's.
        if not hasattr(self, "name"):
            self.name = name

    def __rshift__(self, following: Step | Flow) -> Flow:
        return Flow(((self,),)) >> following

    @overload
    def undo(self, function: MakeUndo) -> Undo: ...

    @overload
    def undo(self, *, ok: type[Event] | None = None) -> Callable[[MakeUndo], Undo]: ...

    def undo(
        self, function: MakeUndo | None = None, *, ok: type[Event] | None = None
    ) -> Undo | Callable[[MakeUndo], Undo]:
        """Declare how this step is undone: a function of the state and of the step's reply.

        With `ok`, the saga waits for that event before it undoes the step before this one.
        """

        def declare(undo: MakeUndo) -> Undo:
            if self.undoing is not None:
                raise UsageError(f"The step {self.command.__name__} has two undos: remove one.")
            self.undoing = Undo(undo, ok)
            return self.undoing

        return declare if function is None else declare(function)


@dataclass(frozen=True)
class Flow:
    """Stages in the order in which they run. The steps of one stage run at the same time."""

    stages: tuple[tuple[Step, ...], ...]

    def __rshift__(self, following: Step | Flow) -> Flow:
        after = ((following,),) if isinstance(following, Step) else following.stages
        return Flow((*self.stages, *after))


@dataclass(frozen=True)
class Definition:
    """A complete saga whose parts fit together; `authoring` makes and checks it."""

    name: str
    version: int
    started_by: type[Event]
    state: type[BaseModel]
    stages: tuple[tuple[Step, ...], ...]
    begin: Callable[[Any], BaseModel]
    completed: Callable[[Any], Message | None]
    undone: Callable[[Any, Any], Message | None]
    publishes: tuple[type[Message], ...]
    sources: tuple[str, ...] = ()

    @property
    def steps(self) -> Iterator[Step]:
        """All steps, in the order of the flow."""
        return (each for stage in self.stages for each in stage)

    def replies(self) -> Iterator[type[Event]]:
        """Every event that may answer a step or an undo."""
        for each in self.steps:
            yield each.ok
            yield from each.failed
            if each.undoing is not None and each.undoing.ok is not None:
                yield each.undoing.ok
