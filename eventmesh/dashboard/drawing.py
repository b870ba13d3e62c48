"""Pictures as SVG: sparklines and graphs. Colours come from the stylesheet, by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eventmesh.printable import printable

WIDTH, HEIGHT = 120, 28

_CHARACTER = 7.4  # the width of one, about, at the stylesheet's size
_MOST_CHARACTERS = 40
_LINE, _PADDING, _GAP, _BETWEEN = 17, 10, 22, 70


def sparkline(values: Sequence[float | None], label: str) -> Markup:
    """A line of the values, oldest first, with a text for who cannot see it. None is a gap."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup("")
    highest = max(known) or 1.0
    step = WIDTH / (len(values) - 1)
    runs: list[list[str]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            y = HEIGHT - 2 - (HEIGHT - 4) * value / highest
            runs[-1].append(f"{place * step:.1f},{y:.1f}")
    lines = Markup("").join(
        Markup('<polyline points="{}"/>').format(" ".join(run)) for run in runs if len(run) > 1
    )
    text = f"{label}: {known[-1]:,.4g} now, at most {max(known):,.4g}"
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}" '
        'preserveAspectRatio="none">{}</svg>'
    ).format(WIDTH, HEIGHT, text, lines)


@dataclass(frozen=True, slots=True)
class Node:
    """A box with lines of text, the first of them larger; `href` makes it a link."""

    id: str
    lines: tuple[str, ...]
    kind: str = ""
    href: str | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(_short(printable(line)) for line in self.lines)

    @property
    def width(self) -> float:
        longest = max((len(line) for line in self.shown), default=0)
        return longest * _CHARACTER + 2 * _PADDING

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + _PADDING


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow between two nodes."""

    start: str
    end: str
    kind: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    height: float


def graph(
    ranks: Sequence[Sequence[Node]], edges: Iterable[Edge], label: str, *, downwards: bool
) -> Markup:
    """Nodes in ranks, from the top to the bottom or from the left to the right, with arrows. Within
    a rank, nodes are put near those of the rank before that they have arrows from."""
    arrows = list(edges)
    ordered = _ordered(ranks, arrows)
    boxes = _placed(ordered, downwards)
    width = max((box.x + box.width for box in boxes.values()), default=0) + _GAP
    height = max((box.y + box.height for box in boxes.values()), default=0) + _GAP
    drawn = [
        _arrow(boxes[arrow.start], boxes[arrow.end], arrow, downwards)
        for arrow in arrows
        if arrow.start in boxes and arrow.end in boxes
    ]
    drawn += [_node(node, boxes[node.id]) for rank in ordered for node in rank]
    return Markup(
        '<svg class="graph" width="{0:.0f}" height="{1:.0f}" viewBox="0 0 {0:.0f} {1:.0f}" '
        'role="group" aria-label="{2}"><defs>'
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
        '<path d="M0 0L8 4L0 8z"/>'
        "</marker></defs>{3}</svg>"
    ).format(width, height, printable(label), Markup("").join(drawn))


def _ordered(ranks: Sequence[Sequence[Node]], edges: Sequence[Edge]) -> list[list[Node]]:
    """The ranks, each in the order of the mean place of what leads to its nodes."""
    ordered: list[list[Node]] = []
    places: dict[str, float] = {}
    starts: dict[str, list[str]] = {}
    for edge in edges:
        starts.setdefault(edge.end, []).append(edge.start)
    for rank in ranks:
        means: dict[str, float] = {}
        for place, node in enumerate(rank):
            before = [places[start] for start in starts.get(node.id, ()) if start in places]
            means[node.id] = sum(before) / len(before) if before else float(place)
        row = sorted(rank, key=lambda node: (means[node.id], node.id))
        places |= {node.id: place / max(len(row) - 1, 1) for place, node in enumerate(row)}
        ordered.append(row)
    return ordered


def _placed(ranks: Sequence[Sequence[Node]], downwards: bool) -> Mapping[str, _Box]:
    """Each rank is centred across the direction of the arrows."""
    spans = [
        sum((node.width if downwards else node.height) + _GAP for node in rank) for rank in ranks
    ]
    widest = max(spans, default=0.0)
    boxes: dict[str, _Box] = {}
    along = float(_GAP)
    for rank, span in zip(ranks, spans, strict=True):
        across = (widest - span) / 2 + _GAP
        depth = max((node.height if downwards else node.width for node in rank), default=0.0)
        for node in rank:
            x, y = (across, along) if downwards else (along, across)
            boxes[node.id] = _Box(x, y, node.width, node.height)
            across += (node.width if downwards else node.height) + _GAP
        along += depth + (_BETWEEN * 0.6 if downwards else _BETWEEN)
    return boxes


def _arrow(start: _Box, end: _Box, edge: Edge, downwards: bool) -> Markup:
    if downwards:
        x1, y1 = start.x + start.width / 2, start.y + start.height
        x2, y2 = end.x + end.width / 2, end.y
        middle = (y1 + y2) / 2
        path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
    else:
        x1, y1 = start.x + start.width, start.y + start.height / 2
        x2, y2 = end.x, end.y + end.height / 2
        middle = (x1 + x2) / 2
        path = f"M{x1:.1f} {y1:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    label = Markup("")
    if edge.label:
        label = Markup(
            '<text class="small" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
        ).format((x1 + x2) / 2, (y1 + y2) / 2 - 3, printable(edge.label))
    return Markup('<path class="{}" d="{}" marker-end="url(#arrow)"/>{}').format(
        edge.kind, path, label
    )


def _node(node: Node, box: _Box) -> Markup:
    texts = Markup("").join(
        Markup('<text{} x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            Markup(' class="small"') if number else "",
            box.x + box.width / 2,
            box.y + _PADDING / 2 + 12 + number * _LINE,
            line,
        )
        for number, line in enumerate(node.shown)
    )
    whole = "\n".join(printable(line) for line in node.lines)
    shape = Markup(
        '<g class="{}"><title>{}</title><rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
        'rx="6"/>{}</g>'
    ).format(node.kind, whole, box.x, box.y, box.width, box.height, texts)
    return shape if node.href is None else Markup('<a href="{}">{}</a>').format(node.href, shape)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
