"""One saga as a graph: its steps in the order of its code, and where it stands in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from eventmesh.dashboard.drawing import Edge, Node, graph
from eventmesh.persistence.sagas import SagaRow
from eventmesh.saga.definition import Definition, command_of
from eventmesh.saga.flow import Step
from eventmesh.saga.graph import ends, links

_WAITING = ("sent", "undo_sent")
_FAILED = ("failed", "timed_out", "dead_lettered")


def saga_picture(definition: Definition, row: SagaRow) -> Markup:
    """The steps from the top to the bottom. What was done, waits or has failed is marked, and so is
    the path that was taken; a text says the same in each step."""
    arrows = list(links(definition.flow))
    first, last = ends(definition.flow)
    ranks: dict[str, int] = {}
    for _ in definition.steps:  # the longest way to each step; arrows form no ring
        for step in definition.steps:
            before = [ranks.get(start, 0) + 1 for start, end in arrows if end == step]
            ranks[step] = max(before, default=1)
    units = {name: _units(row.steps, name) for name in definition.steps}
    nodes = {
        name: Node(name, _lines(step, units[name]), _kind(units[name]))
        for name, step in definition.steps.items()
    }
    depth = max(ranks.values(), default=0)
    starts = " or ".join(model.__name__ for model in definition.starts)
    levels = [
        [nodes[name] for name, rank in ranks.items() if rank == level]
        for level in range(1, depth + 1)
    ]
    ending = Node(
        " end", ("end" if row.is_open else row.status,), "done" if row.status == "completed" else ""
    )
    rows = [[Node(" start", (starts,), "done")], *levels, [ending]]
    begun = {name for name, found in units.items() if found}
    passed = {name for name, found in units.items() if _kind(found) == "done"}
    edges = [Edge(" start", name, "taken" if name in begun else "") for name in first]
    edges += [
        Edge(start, end, "taken" if start in passed and end in begun else "")
        for start, end in arrows
    ]
    is_over = row.status == "completed"
    edges += [Edge(name, " end", "taken" if is_over and name in passed else "") for name in last]
    return graph(rows, edges, f"Steps of {row.name}", downwards=True)


def _units(steps: Mapping[str, Any], step: str) -> list[Mapping[str, Any]]:
    """The records of a step, or of each of its items."""
    return [unit for name, unit in steps.items() if name == step or name.startswith(f"{step}[")]


def _lines(step: Step[Any, Any], units: list[Mapping[str, Any]]) -> tuple[str, ...]:
    what = "waits for " + step.ok.__name__
    if step.command is not None:
        what = command_of(step.command, str(step)).__name__
    counted: dict[str, int] = {}
    for unit in units:
        status = str(unit.get("status", "?")).replace("_", " ")
        counted[status] = counted.get(status, 0) + 1
    state = ", ".join(
        status if number == 1 and len(units) == 1 else f"{number} {status}"
        for status, number in counted.items()
    )
    attempts = max((int(unit.get("attempt", 1)) for unit in units), default=1)
    if attempts > 1:
        state += f", attempt {attempts}"
    return (step.name + (" (pivot)" if step.is_pivot else ""), what, state or "not begun")


def _kind(units: list[Mapping[str, Any]]) -> str:
    statuses = {unit.get("status") for unit in units}
    if not statuses:
        return ""
    if statuses & set(_FAILED):
        return "failed"
    if statuses & set(_WAITING):
        return "sent"
    return "undone" if "undone" in statuses else "done"
