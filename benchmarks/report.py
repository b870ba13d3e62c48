"""What was measured, as rows: a table for people, JSON for `make` and for whoever compares."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Rate, percentile

LIBRARIES = ("eventmesh", "faststream", "redis", "hiredis", "aio-pika", "aiormq", "pydantic")


@dataclass(frozen=True)
class Row:
    """Ours against one peer. `ratio` is ours / peer, `low` and `high` the extremes of it over the
    repetitions; `cpu_ratio` is the same of messages per second of client CPU; `best` marks the
    fastest peer of its family (raw or faststream); `goal` says what the ratio should be, if
    anything was promised."""

    name: str
    ours: float
    peer: float
    ratio: float
    unit: str
    low: float
    high: float
    cpu_ratio: float | None
    peer_name: str
    family: str
    best: bool
    goal: str = ""


def rate_rows(
    name: str,
    ours: Sequence[Rate],
    peers: Mapping[tuple[str, str], Sequence[Rate]],
    *,
    unit: str = "msg/s",
    goal: str = "",
) -> list[Row]:
    """A row for each peer, by (family, name); rates by repetition."""
    mine, my_cpu = _medians(ours)
    best = {
        family: max(_medians(rates)[0] for (other, _), rates in peers.items() if other == family)
        for family, _ in peers
    }
    rows = []
    for (family, peer_name), rates in peers.items():
        ratios = [our.wall / their.wall for our, their in zip(ours, rates, strict=True)]
        theirs, their_cpu = _medians(rates)
        rows.append(
            Row(
                name=f"{name} vs {peer_name}",
                ours=round(mine, 1),
                peer=round(theirs, 1),
                ratio=round(mine / theirs, 3),
                unit=unit,
                low=round(min(ratios), 3),
                high=round(max(ratios), 3),
                cpu_ratio=round(my_cpu / their_cpu, 3),
                peer_name=peer_name,
                family=family,
                best=theirs == best[family],
                goal=goal,
            )
        )
    return rows


def latency_row(name: str, family: str, peer_name: str, ours: float, peer: float) -> Row:
    """A row of one percentile, in milliseconds: the lower, the better."""
    return _single(name, family, peer_name, ours, peer, "ms")


def target_row(name: str, ours: Sequence[float], target: float) -> Row:
    """A row of one percentile of each repetition, in milliseconds, against what is asked of it: the
    lower, the better."""
    row = _single(name, "target", "target", statistics.median(ours), target, "ms")
    ratios = [each / target for each in ours]
    return replace(row, low=round(min(ratios), 3), high=round(max(ratios), 3))


def latency_rows(
    name: str,
    percent: int,
    ours: Sequence[Sequence[float]],
    peers: Mapping[tuple[str, str], Sequence[Sequence[float]]],
    goal: str = "",
) -> list[Row]:
    """A row of one percentile for each peer, by (family, name); milliseconds by repetition, of
    which the medians count: the lower, the better."""
    mine = [percentile(each, percent) for each in ours]
    rows = []
    for (family, peer_name), latencies in peers.items():
        theirs = [percentile(each, percent) for each in latencies]
        middles = statistics.median(mine), statistics.median(theirs)
        row = _single(f"{name} p{percent}", family, peer_name, *middles, "ms")
        ratios = [our / their for our, their in zip(mine, theirs, strict=True)]
        low, high = round(min(ratios), 3), round(max(ratios), 3)
        rows.append(replace(row, low=low, high=high, goal=goal))
    return rows


def level_row(name: str, peer_name: str, ours: float, peer: float, unit: str) -> Row:
    """A row of what a process takes: the lower, the better."""
    return _single(name, "faststream", peer_name, ours, peer, unit)


def _single(name: str, family: str, peer_name: str, ours: float, peer: float, unit: str) -> Row:
    """A row that was measured once; its ratio is 0 where the peer has nothing."""
    ratio = round(ours / peer, 3) if peer else 0.0
    return Row(
        name=f"{name} vs {peer_name}",
        ours=round(ours, 3),
        peer=round(peer, 3),
        ratio=ratio,
        unit=unit,
        low=ratio,
        high=ratio,
        cpu_ratio=None,
        peer_name=peer_name,
        family=family,
        best=True,
    )


def facts() -> Iterable[str]:
    """What the figures depend on, as far as this process knows it."""
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    yield (
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()} {platform.release()}), "
        f"load {loads}, Python {platform.python_version()}"
    )
    yield ", ".join(f"{library} {version(library)}" for library in LIBRARIES)


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """Peers that are not the best of their family are dimmed."""
    table = Table(title="ours / peer")
    table.add_column("measured")
    has_goals = any(row.goal for row in rows)
    for heading in ("ours", "peer", "unit", "ratio", "min-max", "CPU ratio"):
        table.add_column(heading, justify="right")
    if has_goals:
        table.add_column("goal")
    for row in rows:
        digits = 0 if row.unit.endswith("/s") else 2
        table.add_row(
            row.name,
            f"{row.ours:,.{digits}f}",
            f"{row.peer:,.{digits}f}",
            row.unit,
            f"{row.ratio:.2f}",
            "" if row.low == row.high else f"{row.low:.2f}-{row.high:.2f}",
            "" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}",
            *([row.goal] if has_goals else []),
            style=None if row.best else "dim",
        )
    console.print(table)


def _medians(rates: Sequence[Rate]) -> tuple[float, float]:
    """By the wall's clock and by the client's CPU."""
    return statistics.median(r.wall for r in rates), statistics.median(r.cpu for r in rates)


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """One list of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
