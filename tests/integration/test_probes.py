"""Health probes and metrics of a real worker process."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventmesh.testing.servers.processes import free_port, free_ports

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

Attributes = Callable[..., dict[str, str]]

GOOD = b'{"owner": "ada", "cents": 1250}'
SLOW = b'{"owner": "slow", "cents": 100}'


@pytest.fixture
def port() -> int:
    return free_port()


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body of the answer; status 0 if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def problems(port: int) -> list[str]:
    status, body = ask(port, "/readyz")
    said = json.loads(body)
    assert status == (200 if said["ready"] else 503)
    assert said["ready"] == (not said["problems"])
    assert said["warnings"] == []  # the bank has no sagas
    found: list[str] = said["problems"]
    return found


def metrics(port: int) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, sorted, without the service's."""
    status, body = ask(port, "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()) if value != "bank")): (
            sample.value
        )
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_metrics_count_what_a_worker_has_done(
    on: Callable[[str], Project],
    broker: str,
    port: int,
    attributes: Attributes,
    put: Put,
    wait_until: Callable[..., Any],
) -> None:
    bank = on(broker)
    worker = bank.worker("--health-port", str(port))
    assert ask(port, "/livez") == (200, "alive\n")
    wait_until(lambda: problems(port) == [], "a ready worker")
    sent = attributes()
    for _ in range(2):
        await put(bank, sent, GOOD)
    await put(bank, attributes(), b"garbage")
    wait_until(
        lambda: metrics(port)["eventmesh_deliveries_total", "dead", "bank.deposit"] == 1,
        "the dead letter counted",
    )
    worker.until_prints("ada has 12.50")

    def all_counted() -> bool:
        seen = metrics(port)
        return (
            seen["eventmesh_deliveries_total", "done", "bank.tell"] == 1
            and seen["eventmesh_deliveries_total", "done", "bank.deposit"] == 2
            and seen["eventmesh_outbox_relayed_total",] == 1
            and seen.get(("eventmesh_outbox_oldest_seconds",)) == 0
            and seen["eventmesh_busy_seconds", "bank.deposit"] == 0
            and seen.get(("eventmesh_messages", "dead", "bank.deposit")) == 1
            and seen.get(("eventmesh_messages", "ready", "bank.deposit")) == 0
        )

    wait_until(all_counted, "everything counted")
    seen = metrics(port)
    assert seen["eventmesh_deliveries_total", "retried", "bank.deposit"] == 0
    assert seen["eventmesh_duplicates_total", "bank.deposit"] == 1
    assert seen["eventmesh_batches_total", "bank.tell"] == 1
    assert seen["eventmesh_batch_seconds_total", "bank.tell"] > 0
    assert seen["eventmesh_consuming", "bank.deposit"] == 1
    assert seen["process_resident_memory_bytes",] > 0
    worker.drain()


async def test_a_draining_worker_is_alive_and_not_ready(
    bank: Project, port: int, attributes: Attributes, put: Put, wait_until: Callable[..., Any]
) -> None:
    worker = bank.worker("--health-port", str(port))
    await put(bank, attributes(), SLOW)
    worker.until_says("depositing")
    assert metrics(port)["eventmesh_busy_seconds", "bank.deposit"] > 0
    worker.tell(signal.SIGTERM)
    wait_until(lambda: problems(port) == ["the worker is draining"], "draining")
    assert ask(port, "/livez")[0] == 200
    bank.write("go", "")
    assert worker.ended().code == 0
    assert ask(port, "/livez") == (0, "")


async def test_each_of_several_workers_has_its_own_port(
    bank: Project, wait_until: Callable[..., Any]
) -> None:
    port, _ = free_ports(2)
    parent = bank.worker("--workers", "2", "--health-port", str(port), processes=2)
    for number, child in enumerate(parent.children()):
        wait_until(lambda number=number: problems(port + number) == [], "a ready worker")
        start = metrics(port + number)["process_start_time_seconds",]
        assert start == pytest.approx(started_at(child), abs=1)
    parent.drain()


def started_at(pid: int) -> float:
    """When the process started, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    booted = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text().splitlines()
        if line.startswith("btime")
    )
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def test_a_health_port_in_use_is_a_usage_error(bank: Project) -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as listener:  # noqa: S104
        taken = str(listener.getsockname()[1])
        ended = bank.run("worker", "bank", "--health-port", taken)
    ended.fails(2, taken, "EVENTMESH_HEALTH_PORT")


FEW_FILES = "import os, resource, sys; from resource import RLIMIT_NOFILE as most; \
resource.setrlimit(most, (200, 200)); os.execv(sys.executable, sys.argv[1:])"
"""A program that executes another one, which may have 200 open files."""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_idle_connections_to_the_health_port_do_not_stop_a_worker(
    bank: Project,
    port: int,
    loop: str,
    attributes: Attributes,
    put: Put,
    wait_until: Callable[..., Any],
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    worker = bank.start_program(
        *(sys.executable, "-c", FEW_FILES, sys.executable, "-m", "eventmesh", "worker", "bank"),
        *("--health-port", str(port)),
        EVENTMESH_EVENT_LOOP=loop,
    )
    worker.until_says("worker is ready")
    with ExitStack() as stack:
        for number in range(400):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            if number % 2:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: half")
        assert ask(port, "/livez") == (200, "alive\n")
        wait_until(lambda: problems(port) == [], "a ready worker")
        await put(bank, attributes(), GOOD)
        worker.until_prints("ada has 12.50")
        held = int(metrics(port)["process_open_fds",])
        assert held < 120, held
    worker.drain()
    assert "out of system resource" not in worker.err


def test_an_idle_connection_to_the_health_port_is_closed(bank: Project, port: int) -> None:
    worker = bank.worker("--health-port", str(port))
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: half")
        assert connection.recv(1) == b""  # before the connection's timeout
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: whole\r\n\r\n")
        with connection.makefile("rb") as answer:  # ends when the connection is closed
            assert answer.read().endswith(b"\r\n\r\nalive\n")
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"\x00nonsense\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 400"
    worker.drain()
    # Invalid requests are not logged.
    assert [line for line in worker.lines() if line["level"] != "info"] == []
