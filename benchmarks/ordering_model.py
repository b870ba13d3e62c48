"""How far order lets workers share the work: `python -m benchmarks.ordering_model`.

A model, not a measurement. Messages have keys, all equally frequent or by Zipf's law; each worker
takes as many messages a second as one took in `benchmarks.ordering`, and all messages of a key, or
of a partition, go to one worker at a time. The sustained rate is reached when the busiest worker,
or the busiest key, is busy all the time. It is drawn into docs/images/ordering-scale.svg.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eventmesh.wire.envelope import part_of

KEYS = 10_000
WORKERS = (4, 16, 64)
PARTITIONS = (16, 64, 256)
OWNED = "single keys"
SEED = 1
PICTURE = Path(__file__).parents[1] / "docs/images/ordering-scale.svg"


@dataclass(frozen=True)
class Load:
    """How often each key occurs, in shares of all messages."""

    name: str
    shares: Mapping[str, float]


def equal(keys: int) -> Load:
    return Load("all keys equally frequent", {f"key-{n}": 1 / keys for n in range(keys)})


def zipf(keys: int) -> Load:
    """The n-th key is 1/n as frequent as the first."""
    total = sum(1 / n for n in range(1, keys + 1))
    return Load("keys by Zipf's law", {f"key-{n}": 1 / n / total for n in range(1, keys + 1)})


def speed_with_partitions(load: Load, partitions: int, workers: int) -> float:
    """How many times the rate of one worker. Each has as many partitions, whatever they weigh."""
    weights = [0.0] * partitions
    for key, share in load.shares.items():
        weights[part_of(key, "", partitions)] += share
    order = list(range(partitions))
    random.Random(SEED).shuffle(order)  # noqa: S311 - not for secrets
    busiest = max(sum(weights[each] for each in order[w::workers]) for w in range(workers))
    return 1 / busiest


def speed_with_owned_keys(load: Load, workers: int) -> float:
    """How many times the rate of one worker: whoever is free takes the next key that is free."""
    return min(workers, 1 / max(load.shares.values()))


def speeds(load: Load) -> dict[str, list[float]]:
    """By kind of ownership, for each number of workers."""
    found = {
        f"{number} partitions": [speed_with_partitions(load, number, each) for each in WORKERS]
        for number in PARTITIONS
    }
    return found | {OWNED: [speed_with_owned_keys(load, each) for each in WORKERS]}


# The picture

COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#d95f0e")
WIDTH, HEIGHT, LEFT, TOP, BASE = 420, 230, 46, 40, 190
GAP, BAR = 18, 24


def drawing(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """The picture as SVG: for each load, the share of the workers that is of use."""
    parts = [_panel(name, found, place * WIDTH) for place, (name, found) in enumerate(panels)]
    legend = _legend(list(panels[0][1]))
    size = f'viewBox="0 0 {WIDTH * len(panels)} {HEIGHT + 30}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        f"<title>How many workers' worth of work gets done, as a share of the workers</title>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join([*parts, legend])
        + "\n</svg>\n"
    )


def _panel(name: str, found: Mapping[str, Sequence[float]], left: float) -> str:
    drawn = [f'<text x="{left + LEFT}" y="20" font-size="13">{escape(name)}</text>']
    for percent in (0, 50, 100):
        y = BASE - (BASE - TOP) * percent / 100
        ends = f'x1="{left + LEFT}" x2="{left + WIDTH - 10}" y1="{y}" y2="{y}"'
        drawn.append(
            f'<line {ends} stroke="#cccccc"/>'
            f'<text x="{left + LEFT - 6}" y="{y + 4}" text-anchor="end">{percent}%</text>'
        )
    group = len(found) * BAR + GAP
    for number, workers in enumerate(WORKERS):
        x = left + LEFT + 8 + number * group
        for place, speed in enumerate(each[number] for each in found.values()):
            height = (BASE - TOP) * speed / workers
            drawn.append(
                f'<rect x="{x + place * BAR}" y="{BASE - height:.1f}" width="{BAR - 3}" '
                f'height="{height:.1f}" fill="{COLOURS[place]}"/>'
                f'<text x="{x + place * BAR + (BAR - 3) / 2}" y="{BASE - height - 4:.1f}" '
                f'text-anchor="middle" font-size="9">{speed:.3g}</text>'
            )
        middle = x + len(found) * BAR / 2
        drawn.append(
            f'<text x="{middle}" y="{BASE + 16}" text-anchor="middle">{workers} workers</text>'
        )
    return "\n".join(drawn)


def _legend(names: Sequence[str]) -> str:
    lefts = accumulate((110 for _ in names), initial=LEFT)
    return "\n".join(
        f'<rect x="{left}" y="{BASE + 32}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{left + 17}" y="{BASE + 42}">{escape(name)}</text>'
        for name, colour, left in zip(names, COLOURS, lefts, strict=False)
    )


def main(
    rate: Annotated[float, typer.Option(min=1, help="Messages a second of one worker.")] = 4_000,
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = PICTURE,
) -> None:
    """Print and draw the sustained rates."""
    panels = [(load.name, speeds(load)) for load in (equal(KEYS), zipf(KEYS))]
    for name, found in panels:
        table = Table(title=f"{name}, {KEYS:,} of them; messages a second")
        table.add_column("each has one worker at a time")
        for workers in WORKERS:
            table.add_column(f"{workers} workers", justify="right")
        for kind, each in found.items():
            table.add_row(kind, *(f"{rate * speed:,.0f}" for speed in each))
        Console().print(table)
    picture.write_text(drawing(panels), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
