"""What `eventmesh schema show` and `diff` print of sagas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eventmesh.cli.schema.common import sagas_of, say, say_json, services_of
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.saga.shape import Shape, StepShape


def show_shape(root: Path, name: str, version: str, *, as_json: bool) -> bool:
    """Show a frozen version of a saga; false if no saga of this name is frozen."""
    from eventmesh.saga.shape import as_json as jsonable
    from eventmesh.saga.shape_locks import read_shapes

    locks = read_shapes(root, name).locks
    if not locks:
        return False
    shape = _frozen(root, name, version or str(max(locks)))
    if as_json:
        say_json(jsonable(shape))
    else:
        say("\n".join(map(printable, _lines(shape))) + "\n")
    return True


def diff_shapes(root: Path, first: str, second: str, *, as_json: bool) -> bool:
    """Say what differs between two versions of a saga; false if they are not of one."""
    from eventmesh.saga.shape import differences
    from eventmesh.saga.shape_locks import read_shapes

    names = {text.partition("@")[0] for text in (first, second)}
    if len(names) > 1 or not read_shapes(root, names.pop()).locks:
        return False
    before, after = (_look_up(root, text) for text in (first, second))
    changes = differences(before, after)
    if as_json:
        say_json({"before": first, "after": second, "changes": changes})
    else:
        say("".join(f"{each}\n" for each in changes or ["the shapes are the same"]))
    return True


def _look_up(root: Path, text: str) -> Shape:
    from eventmesh.saga.shape import shape_of

    name, at, version = text.partition("@")
    if at:
        return _frozen(root, name, version)
    for definition in sagas_of(services_of(None)):
        if definition.name == name:
            return shape_of(definition)
    raise UsageError(f"No service of this project has the saga {name}.")


def _frozen(root: Path, name: str, version: str) -> Shape:
    from eventmesh.saga.shape_locks import read_shapes

    found = read_shapes(root, name)
    for number, lock in found.locks.items():
        if version == str(number):
            return lock.shape
    for problem in found.problems:
        if problem.subject == f"{name} v{version}":
            raise UsageError(f"{problem.subject}: {problem.summary}. {problem.fix}")
    known = ", ".join(map(str, found.locks))
    raise UsageError(f"{name} has no frozen version {version}; frozen versions: {known}.")


def _lines(shape: Shape) -> Iterator[str]:
    from eventmesh.saga.shape import text

    yield f"{shape} (saga{', with a key' if shape.has_key else ''})"
    yield f"starts:  {', '.join(shape.starts)}"
    yield f"flow:    {text(shape.flow)}"
    yield f"state:   {', '.join(shape.state_writer.get('properties', {})) or 'no fields'}"
    for name, step in shape.steps.items():
        yield ""
        yield f"{name} ({step.kind})"
        yield from (f"  {line}" for line in _step_lines(step))


def _step_lines(step: StepShape) -> Iterator[str]:
    if step.command is not None:
        yield f"sends    {step.command}"
    yield f"ok       {step.ok}"
    if step.failed:
        yield f"failed   {', '.join(step.failed)}"
    if step.undo is not None:
        answer = f", answered by {step.undo.ok}" if step.undo.ok else ""
        yield f"undo     {step.undo.command}{answer}"
    options = [
        name
        for name, is_set in (
            ("each=", step.each),
            ("when=", step.when),
            ("correlate=", step.correlated),
            ("no_undo=", step.needs_no_undo),
        )
        if is_set
    ]
    yield f"options  {', '.join([*options, 'times out' if step.has_timeout else 'waits forever'])}"
