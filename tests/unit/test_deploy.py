"""The dashboard and the alerts in deploy/, and the page about metrics, name metrics and labels that
exist. The image can be built from a fresh clone, and its containers have the time to drain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.core import Metric

from eventmesh.cli.audit import LABELS, METRIC
from eventmesh.clock import SystemClock
from eventmesh.observability.metrics import _ServerStats, _WorkerCollector
from eventmesh.runtime import supervisor
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.memory import MemoryTransport

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RULES = yaml.safe_load((ROOT / "deploy/prometheus/eventmesh.rules.yaml").read_text("utf-8"))
BOARD = json.loads((ROOT / "deploy/grafana/eventmesh.json").read_text("utf-8"))

OF_PROCESSES = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
}
ANNOUNCED = {METRIC: set(LABELS)}
"""Metrics that come with `eventmesh audit`, and their labels."""
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds to what it scrapes."""


def families() -> list[Metric]:
    """Every metric of a worker, without values."""
    clock = SystemClock()
    worker = Worker([], MemoryTransport(clock), Settings(), clock)
    return list(_WorkerCollector(worker, _ServerStats(True, {}, {}, {}, {})).collect())


def exposed() -> dict[str, tuple[str, tuple[str, ...]]]:
    """The kind and the labels of every metric, by its name in Prometheus."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            tuple(family._labelnames),
        )
        for family in families()
    }


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def board_expressions() -> list[str]:
    """With what Grafana puts in for its variables."""
    return [
        target["expr"].replace("$__rate_interval", "5m").replace("$service", ".*")
        for panel in panels()
        for target in panel["targets"]
    ]


def nodes(node: Any) -> Iterator[Any]:
    """A PromQL expression and all that it is made of."""
    yield node
    match node:
        case promql_parser.BinaryExpr():
            inner = [node.lhs, node.rhs]
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            inner = [node.expr]
        case promql_parser.Call():
            inner = list(node.args)
        case promql_parser.MatrixSelector():
            inner = [node.vector_selector]
        case _:
            inner = []
    for each in inner:
        yield from nodes(each)


def used(expression: str) -> dict[str, set[str]]:
    """The labels by which an expression chooses or groups, by metric."""
    everything = list(nodes(promql_parser.parse(expression)))
    grouped = {
        label
        for node in everything
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
        for label in node.modifier.labels
    }
    return {
        node.name: {matcher.name for matcher in node.matchers.matchers} | grouped
        for node in everything
        if isinstance(node, promql_parser.VectorSelector)
    }


EXPRESSIONS = [rule["expr"] for rule in alerts()] + board_expressions()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_alerts_and_panels_use_metrics_and_labels_that_exist(expression: str) -> None:
    metrics = exposed()
    for name, labels in used(expression).items():
        if name in OF_PROCESSES:
            assert labels <= OF_PROMETHEUS
        elif name in ANNOUNCED and name not in metrics:
            assert labels <= ANNOUNCED[name]
        else:
            assert name in metrics, f"there is no metric {name}"
            assert labels <= {*metrics[name][1], *OF_PROMETHEUS}, name


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for expression in board_expressions() for name in used(expression)}
    assert set(exposed()) - shown == set()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_panel_shows_what_its_legend_names(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5m").replace("$service", ".*")
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        kept = set.union(*used(expression).values())
        assert named <= kept


COME_AND_GO = {"eventmesh_sagas", "eventmesh_sagas_overdue", METRIC}
"""Metrics that are missing also while all is well, because there is nothing to tell."""


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_tile_shows_no_number_while_no_worker_reports(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5m").replace("$service", ".*")
        if "vector(" in expression or "absent(" in expression:
            assert set(used(expression)) <= COME_AND_GO


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[0-9]+m", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert len(rule["annotations"]["summary"]) < 120
    assert rule["annotations"]["description"].endswith(".")
    promised = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
    outermost = promql_parser.parse(rule["expr"]).lhs
    kept = {label for node in nodes(outermost) for label in grouping(node)}
    assert set(promised) <= kept


def grouping(node: Any) -> list[str]:
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        return list(node.modifier.labels)
    return []


def rows(heading: str, columns: int) -> list[tuple[str, ...]]:
    """The first columns of the table below a heading, without backquotes."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [
        tuple(cell.strip().replace("`", "") for cell in line.split("|")[1 : columns + 1])
        for line in section.splitlines()
        if line.startswith("| `")
    ]


def test_the_table_of_metrics_lists_every_metric_with_its_kind_and_labels() -> None:
    listed = {name: (kind, tuple(labels.split())) for name, kind, labels in rows("All metrics", 3)}
    assert listed == exposed()


def test_expressions_reduce_each_metric_as_the_table_says() -> None:
    """What every process reports for itself is added up; of what all report alike, one is taken."""
    how = {name: over for name, _, _, over in rows("All metrics", 4)}
    for expression in EXPRESSIONS:
        for node in nodes(promql_parser.parse(expression)):
            if not isinstance(node, promql_parser.AggregateExpr):
                continue
            inner = node.expr
            if isinstance(inner, promql_parser.Call):
                inner = inner.args[0].vector_selector
            if isinstance(inner, promql_parser.VectorSelector) and inner.name in how:
                counts_processes = inner.name in ("eventmesh_consuming", "eventmesh_ready")
                by_process = "instance" in grouping(node)
                assert str(node.op) == how[inner.name] or counts_processes or by_process, expression


def test_the_table_of_alerts_lists_every_alert() -> None:
    assert [name for (name,) in rows("What to do about an alert", 1)] == [
        rule["alert"] for rule in alerts()
    ]


def test_the_image_copies_what_a_fresh_clone_has() -> None:
    """Docker 20.10 refuses a COPY of which nothing exists, and BuildKit a pattern in a folder that
    does not exist, so the folder itself must be a part of the pattern."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.*)", dockerfile, re.MULTILINE):
        *sources, _ = line.split()
        patterns = [source for source in sources if "[" in source]
        assert all("[" in pattern.split("/")[0] for pattern in patterns)
        named = set(sources) - set(patterns)
        assert named
        assert all((ROOT / source).exists() for source in named)


def test_containers_are_given_the_time_to_drain() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        if service.get("command", [""])[0] == "worker":
            assert float(service["stop_grace_period"].removesuffix("s")) > drain_timeout(), name


def drain_timeout() -> float:
    """The default, with the grace of a supervisor."""
    return Settings().drain_timeout + supervisor._GRACE
