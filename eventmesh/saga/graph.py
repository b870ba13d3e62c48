"""A saga as a picture: a Mermaid flow chart of its steps, their undos and its ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eventmesh.contracts.message import Message
from eventmesh.saga.definition import Definition, command_of, no_message
from eventmesh.saga.flow import Parallel, Part, Series, Step


def mermaid(definition: Definition, waiting: Mapping[str, int] | None = None) -> str:
    """The flow chart; `waiting` are numbers of open sagas by what they wait for (`reserve`,
    `reserve:undo`), which are shown in the steps.

    A pivot is a hexagon, a wait is rounded, and dotted arrows lead to undos.
    """
    counts = waiting or {}
    lines = ["flowchart TD"]
    lines.append(f'  starts(["{" or ".join(_name(model) for model in definition.starts)}"])')
    for step in definition.steps.values():
        lines += _step(step, counts)
    entries, exits = ends(definition.flow)
    lines += [f"  starts --> {entry}" for entry in entries]
    lines += [f"  {before} --> {after}" for before, after in links(definition.flow)]
    done = _announced(definition.completed)
    lines.append(f'  completed(["completed{done}"])')
    lines += [f"  {last} --> completed" for last in exits]
    why = {name: _why(step) for name, step in definition.steps.items()}
    can_fail = [name for name in why if why[name] and name not in definition.after_pivot]
    if can_fail:
        lines.append(f'  undone(["undone{_announced(definition.undone)}"])')
        lines += [f"  {name} -. {why[name]} .-> undone" for name in can_fail]
    return "\n".join(lines) + "\n"


def _step(step: Step[Any, Any], counts: Mapping[str, int]) -> Iterator[str]:
    what = "waits for " + _name(step.ok)
    if step.command is not None:
        what = command_of(step.command, str(step)).__name__
        if step.each is not None:
            what += " for each item"
    text = f"{step.name}<br/>{what}{_count(counts, step.name)}"
    if step.is_pivot:
        shape = f'{{{{"{text}"}}}}'
    elif step.command is None:
        shape = f'("{text}")'
    else:
        shape = f'["{text}"]'
    yield f"  {step.name}{shape}"
    if step.undoing is not None:
        undo = command_of(step.undoing.command, str(step)).__name__
        counted = _count(counts, f"{step.name}:undo")
        yield f'  {step.name}_undo["undo {step.name}<br/>{undo}{counted}"]'
        yield f"  {step.name} -. undone by .-> {step.name}_undo"


def _count(counts: Mapping[str, int], label: str) -> str:
    number = sum(
        count for name, count in counts.items() if name == label or _without_item(name) == label
    )
    return f"<br/><b>{number:,} here</b>" if number else ""


def _without_item(label: str) -> str:
    before, bracket, after = label.partition("[")
    return before + after.partition("]")[2] if bracket else label


def _why(step: Step[Any, Any]) -> str:
    """What lets the saga turn back at this step; empty where nothing does."""
    reasons = [_name(model) for model in step.failed]
    if step.timeout is not None and not step.is_pivot:
        reasons.append("time-out")
    if not reasons and step.command is not None:
        reasons.append("dead letter")
    return " or ".join(reasons)


def _announced(function: Any) -> str:
    name = "" if function is no_message else getattr(function, "__name__", "")
    return f"<br/>{name}" if name else ""


def links(part: Part[Any]) -> Iterator[tuple[str, str]]:
    """The pairs of steps of which the second begins when the first is done."""
    if isinstance(part, Series):
        for before, after in zip(part.parts, part.parts[1:], strict=False):
            yield from ((last, first) for last in ends(before)[1] for first in ends(after)[0])
    if isinstance(part, Series | Parallel):
        for each in part.parts:
            yield from links(each)


def ends(part: Part[Any]) -> tuple[list[str], list[str]]:
    """The first and the last steps of a part."""
    match part:
        case Series(parts):
            return ends(parts[0])[0], ends(parts[-1])[1]
        case Parallel(parts):
            inner = [ends(each) for each in parts]
            return [name for first, _ in inner for name in first], [
                name for _, last in inner for name in last
            ]
        case Step():
            return [part.name], [part.name]
    raise AssertionError(part)


def _name(model: type[Message]) -> str:
    return model.__name__
