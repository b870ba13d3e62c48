"""The shop's purchases on every broker, with workers killed all the while and without: `python -m
benchmarks.demo_kills`.

Each run is `eventmesh demo` as anybody starts it, on new databases. The exit code is 1 when a
purchase was lost, doubled or stuck in any of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import facts
from eventmesh.testing.servers import Server, ServerMissing, fresh_database, serve

ROOT = Path(__file__).parents[1]
SERVICES = ("orders", "payments", "inventory", "shipping")
BROKERS = ("sqlite", "redis", "rabbitmq")
PATIENCE = 1_800.0
"""Seconds after which one run counts as hung."""


@dataclass(frozen=True)
class Outcome:
    """What one run said: its last line, and the rows of its table."""

    broker: str
    database: str
    killing: bool
    ok: bool
    verdict: str
    seconds: float
    table: dict[str, str]


def main(
    purchases: Annotated[int, typer.Option(min=1, help="In each run.")] = 5_000,
    broker: Annotated[list[str] | None, typer.Option(help="sqlite, redis, rabbitmq.")] = None,
    kill: Annotated[bool | None, typer.Option(help="Only with, or only without, kills.")] = None,
    output: Annotated[Path, typer.Option(help="Where the outcomes go.")] = Path(
        "build/demo_kills.json"
    ),
) -> None:
    """Run the demo on each broker."""
    console = Console(width=None if Console().is_terminal else 110)
    for fact in facts():
        console.print(fact, highlight=False, soft_wrap=True)
    outcomes = []
    for kind in broker or BROKERS:
        for killing in (False, True) if kill is None else (kill,):
            try:
                outcomes.append(asyncio.run(_run(console, kind, purchases, killing)))
            except (ServerMissing, TimeoutError) as error:
                console.print(f"[red]FAILED[/] {kind}: {error!r}", highlight=False)
                outcomes.append(Outcome(kind, "", killing, False, repr(error), 0.0, {}))
    _print(console, outcomes)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([asdict(each) for each in outcomes], indent=2) + "\n")
    if not all(each.ok for each in outcomes):
        raise typer.Exit(1)


async def _run(console: Console, kind: str, purchases: int, killing: bool) -> Outcome:
    async with _place(kind) as (database, environment):
        began = time.perf_counter()
        code, said = await _demo(
            environment, "--purchases", str(purchases), *(["--kill"] if killing else [])
        )
        seconds = time.perf_counter() - began
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    verdict = said.splitlines()[-1] if said else ""
    return Outcome(kind, database, killing, code == 0, verdict, round(seconds, 1), table_rows(said))


@asynccontextmanager
async def _place(kind: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Which databases, and the variables that make the demo use them and this broker. Where the
    broker is a file, all is left to the demo's own choice."""
    if kind == "sqlite":
        yield "sqlite", {}
        return
    async with AsyncExitStack() as stack:
        postgres, server = (stack.enter_context(serve(each)) for each in ("postgres", kind))
        yield (
            _named(postgres),
            {
                "EVENTMESH_BROKER_URL": server.url,
                "EVENTMESH_BROKER_PREFIX": f"demo{secrets.token_hex(4)}",
            }
            | {
                f"EVENTMESH_{service.upper()}_DATABASE_URL": await stack.enter_async_context(
                    fresh_database(postgres)
                )
                for service in SERVICES
            },
        )


def _named(server: Server) -> str:
    return f"{server.kind} {server.version or ''}".strip()


async def _demo(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of `eventmesh demo`, by nothing but these settings."""
    inherited = {name: os.environ[name] for name in os.environ if not name.startswith("EVENTMESH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eventmesh", "demo", *arguments),
        cwd=ROOT,
        env=inherited | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # its workers end with it
            await process.wait()
    return process.returncode or 0, output.decode()


def table_rows(said: str) -> dict[str, str]:
    """The rows of the demo's table, by what they are about."""
    return dict(re.findall(r"^│ (.+?) +│ +(.+?) │$", said, re.MULTILINE))


def _print(console: Console, outcomes: list[Outcome]) -> None:
    table = Table(title="eventmesh demo")
    for heading in ("broker", "databases", "kills", "outcome", "messages/s", "p50", "p99", "took"):
        table.add_column(heading, justify="left" if heading == "outcome" else "right")
    for each in outcomes:
        table.add_row(
            each.broker,
            each.database,
            each.table.get("workers killed", "none"),
            each.verdict,
            each.table.get("messages/s", ""),
            each.table.get("placed to closed, p50", ""),
            each.table.get("placed to closed, p99", ""),
            f"{each.seconds:.0f} s",
            style=None if each.ok else "red",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
