"""The shape of a saga: all that a running saga depends on, as data that can be frozen.

It names the steps with what answers and undoes them, the order between them, what starts the saga,
and the schema of its state. Functions, durations and numbers of attempts are not part of it: they
may change while sagas run. `shape_locks` freezes one shape for each version, `verify.versions`
proves that sagas of a frozen shape go on under a newer one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from eventmesh.compat.pydantic_models.schemas import reader_schema, writer_schema
from eventmesh.contracts.canonical import digest
from eventmesh.contracts.message import identity_of
from eventmesh.saga.definition import Definition, command_of
from eventmesh.saga.flow import Parallel, Part, Series, Step

Kind = Literal["command", "wait", "pivot"]

Tree = str | tuple[Literal["series", "parallel"], tuple[Any, ...]]
"""A flow: the name of a step, or parts that run one after another or side by side."""


@dataclass(frozen=True, slots=True)
class UndoShape:
    """How a step is undone: the names of the command and of its answer."""

    command: str
    ok: str | None
    takes_reply: bool
    needs_reply: bool


@dataclass(frozen=True, slots=True)
class StepShape:
    """A step. Messages are given by their names."""

    kind: Kind
    command: str | None
    ok: str
    failed: tuple[str, ...]
    undo: UndoShape | None
    needs_no_undo: bool
    """Whether its author has said why it needs no undo."""
    each: bool
    when: bool
    correlated: bool
    """Whether it finds its saga by the business key."""
    has_timeout: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of one version of a saga."""

    name: str
    version: int
    starts: tuple[str, ...]
    has_key: bool
    flow: Tree
    steps: Mapping[str, StepShape]
    state_writer: Mapping[str, Any]
    """The schema of the states that are stored."""
    state_reader: Mapping[str, Any]
    """The schema of the states that can be read."""

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


def shape_of(definition: Definition) -> Shape:
    """The shape of a saga in the code."""
    writer, reader = state_schemas(definition.state)
    return Shape(
        name=definition.name,
        version=definition.version,
        starts=tuple(sorted(identity_of(model).name for model in definition.starts)),
        has_key=definition.key is not None,
        flow=_tree(definition.flow),
        steps={step.name: _step(step) for step in definition.steps.values()},
        state_writer=writer,
        state_reader=reader,
    )


def state_schemas(model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of what is stored of a state, and of what is read. Fields are stored by their
    names, never by their aliases."""
    return writer_schema(model, by_alias=False), reader_schema(model, by_alias=False)


def _tree(part: Part[Any]) -> Tree:
    match part:
        case Series(parts):
            return "series", tuple(map(_tree, parts))
        case Parallel(parts):
            return "parallel", tuple(map(_tree, parts))
        case Step():
            return part.name
    raise AssertionError(part)


def _step(step: Step[Any, Any]) -> StepShape:
    undo, where = step.undoing, str(step)
    command = None if step.command is None else command_of(step.command, where)
    return StepShape(
        kind="wait" if command is None else "pivot" if step.is_pivot else "command",
        command=None if command is None else identity_of(command).name,
        ok=identity_of(step.ok).name,
        failed=tuple(sorted(identity_of(model).name for model in step.failed)),
        undo=None
        if undo is None
        else UndoShape(
            command=identity_of(command_of(undo.command, where)).name,
            ok=None if undo.ok is None else identity_of(undo.ok).name,
            takes_reply=undo.takes_reply,
            needs_reply=undo.needs_reply,
        ),
        needs_no_undo=bool(step.no_undo),
        each=step.each is not None,
        when=step.when is not None,
        correlated=step.correlate is not None,
        has_timeout=step.timeout is not None,
    )


# As JSON

_SHAPE = TypeAdapter(Shape)


def as_json(shape: Shape) -> dict[str, Any]:
    """The shape as a JSON object; `from_json` reads it."""
    content: dict[str, Any] = _SHAPE.dump_python(shape, mode="json")
    return content


def from_json(content: Mapping[str, Any]) -> Shape:
    """The shape that was written so; ValueError for anything else."""
    try:
        shape = _SHAPE.validate_python(dict(content))
    except (ValidationError, RecursionError) as error:
        raise ValueError("has no valid shape of a saga") from error
    if sorted(names_in(shape.flow)) != sorted(shape.steps):
        raise ValueError("has a flow of other steps than it describes")
    return shape


def names_in(flow: Tree) -> Iterator[str]:
    """The steps of a flow."""
    if isinstance(flow, str):
        yield flow
        return
    if not (len(flow) == 2 and flow[0] in ("series", "parallel") and flow[1]):
        raise ValueError("has a flow that is not one")
    for part in flow[1]:
        yield from names_in(tuple(part) if isinstance(part, list) else part)


# In words


def same_shape(one: Shape, other: Shape) -> bool:
    """Whether two shapes mean the same, however the schemas of their states are written."""
    return not differences(one, other)


def differences(before: Shape, after: Shape) -> list[str]:
    """What has changed, in words."""
    found = [*_step_differences(before.steps, after.steps)]
    if text(before.flow) != text(after.flow) and before.steps.keys() == after.steps.keys():
        found.append(f"the flow changed from {text(before.flow)} to {text(after.flow)}")
    found += _started(before.starts, after.starts)
    if before.has_key != after.has_key:
        found.append("it has a key now" if after.has_key else "it has no key any more")
    return [*found, *_state_differences(before, after)]


def text(flow: Tree) -> str:
    """The flow as it is written: `(reserve & capture) >> ship`."""
    if isinstance(flow, str):
        return flow
    kind, parts = flow
    if kind == "parallel":
        return f"({' & '.join(map(text, parts))})"
    return " >> ".join(f"({text(each)})" if _is_series(each) else text(each) for each in parts)


def _is_series(flow: Tree) -> bool:
    return not isinstance(flow, str) and flow[0] == "series"


def _step_differences(
    before: Mapping[str, StepShape], after: Mapping[str, StepShape]
) -> Iterator[str]:
    renamed: set[str] = set()
    """The new names."""
    for name in sorted(before.keys() - after.keys()):
        alike = [
            other
            for other in after.keys() - before.keys() - renamed
            if (after[other].command, after[other].ok) == (before[name].command, before[name].ok)
        ]
        if alike:
            renamed.add(min(alike))
            yield f"the step {name} was renamed to {min(alike)}, which makes it another step"
        else:
            yield f"the step {name} was removed"
    for name in after:
        if name in renamed:
            continue
        if name not in before:
            yield f"the step {name} was added"
        else:
            for change in _changes_of_step(before[name], after[name]):
                yield f"the step {name} {change}"


def _changes_of_step(before: StepShape, after: StepShape) -> Iterator[str]:
    if before.kind != after.kind:
        yield f"was a {before.kind} and is a {after.kind}"
    elif before.command != after.command:
        yield f"sends {after.command} instead of {before.command}"
    if before.ok != after.ok:
        yield f"is answered by {after.ok} instead of {before.ok}"
    yield from (f"does not take {name} any more" for name in _without(before.failed, after.failed))
    yield from (f"takes {name} now" for name in _without(after.failed, before.failed))
    if before.undo is None and after.undo is not None:
        yield "has an undo now"
    elif before.undo is not None and after.undo is None:
        yield "has no undo any more"
    elif before.undo != after.undo:
        yield "is undone in another way"
    if before.needs_no_undo != after.needs_no_undo:
        yield "has no_undo= now" if after.needs_no_undo else "has no no_undo= any more"
    for option in ("each", "when"):
        if getattr(before, option) != getattr(after, option):
            yield f"has {option}= now" if getattr(after, option) else f"has no {option}= any more"
    if before.correlated != after.correlated:
        yield "has correlate= now" if after.correlated else "has no correlate= any more"
    if before.has_timeout != after.has_timeout:
        yield "times out now" if after.has_timeout else "does not time out any more"


def _started(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    yield from (f"{name} does not start it any more" for name in _without(before, after))
    yield from (f"{name} starts it now" for name in _without(after, before))


def _without(some: Sequence[str], others: Sequence[str]) -> list[str]:
    return [each for each in some if each not in others]


def _state_differences(before: Shape, after: Shape) -> Iterator[str]:
    if digest(before.state_writer, defaults=False) == digest(
        after.state_writer, defaults=False
    ) and digest(before.state_reader) == digest(after.state_reader):
        return
    old, new = (_fields(each.state_writer, each.state_reader) for each in (before, after))
    found = False
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            found = True
            what = "changed" if name in new else "was removed"
            yield f"the field {name!r} of the state {what if name in old else 'was added'}"
    if not found:
        yield "a nested part of the state changed"


def _fields(*schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [
            (schema.get("properties", {}).get(name), name in schema.get("required", []))
            for schema in schemas
        ]
        for side in schemas
        for name in side.get("properties", {})
    }
