"""What a workflow asks of the servers: SQL statements, commits, commands of Redis, round trips.

They are counted by proxies between the clients and the servers, so in the same way for each
program, and with whatever runs beside its workflows, such as the leases of relays. Statements are
counted without BEGIN, COMMIT and ROLLBACK; one that is executed for many rows by `executemany`
counts once for each. Commits are those of transactions, and of statements that write outside one.
This is a pass of its own, because a proxy takes time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from rich.console import Console
from rich.table import Table

from benchmarks.counting_proxies import Traffic, postgres_proxy, redis_proxy
from benchmarks.sagas_programs import MakeEngine, Run, Servers

AT_ONCE = 20
TRAILING = 0.3
"""Seconds after the last end in which acknowledgements and the like are still counted."""

IDLE = 3.0
"""Seconds for which an idle program is counted."""

RARE = 0.1
"""Statements that a workflow executes less often are not printed: those of new connections."""

_ENDS = ("BEGIN", "COMMIT", "ROLLBACK")


@dataclass(frozen=True)
class Count:
    """Averages for a workflow, or for a second where the program is idle."""

    program: str
    when: str
    seconds: float
    """From the first workflow's begin to the last one's end, by the number of workflows: for so
    long, what runs beside them is counted, too."""
    statements: float
    commits: float
    postgres_trips: float
    commands: float
    redis_trips: float
    by_statement: dict[str, float]
    by_command: dict[str, float]
    by_text: dict[str, float]
    """How often each statement was asked for; `executemany` asks once for each row."""


async def counts(name: str, make: MakeEngine, servers: Servers, workflows: int) -> list[Count]:
    """Of lone workflows, of some that run at the same time, and of an idle program."""
    traffic, found = Traffic(), []
    with (
        postgres_proxy(servers.postgres.url, traffic) as postgres_url,
        redis_proxy(servers.redis_url, traffic) as redis_url,
    ):
        through = Servers(replace(servers.postgres, url=postgres_url), redis_url)
        async with make(through) as run:
            await run()  # alone: Edda fails if its very first workflows are started together
            await run_all(run, 2 * AT_ONCE, AT_ONCE)  # so that connections are open
            await asyncio.sleep(TRAILING)
            for when, at_once in (("lone", 1), (f"{AT_ONCE} at a time", AT_ONCE)):
                before, began = traffic.copy(), perf_counter()
                await run_all(run, workflows, at_once)
                seconds = (perf_counter() - began) / workflows
                await asyncio.sleep(TRAILING)
                found.append(_count(name, when, seconds, before, traffic, workflows))
            before = traffic.copy()
            await asyncio.sleep(IDLE)
            found.append(_count(name, "idle, in a second", 1.0, before, traffic, IDLE))
    return found


async def run_all(run: Run, workflows: int, at_once: int) -> None:
    """Run so many workflows, so many of them at a time."""
    numbers = iter(range(workflows))

    async def call() -> None:
        for _ in numbers:
            await run()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(call())


def _count(
    name: str, when: str, seconds: float, before: Traffic, after: Traffic, among: float
) -> Count:
    def each(counted: Counter[str]) -> dict[str, float]:
        return {what: round(number / among, 2) for what, number in counted.most_common()}

    statements = after.statements - before.statements
    commands = after.commands - before.commands
    return Count(
        name,
        when,
        seconds,
        statements=sum(n for tag, n in statements.items() if tag not in _ENDS) / among,
        commits=(after.commits - before.commits) / among,
        postgres_trips=(after.postgres_trips - before.postgres_trips) / among,
        commands=commands.total() / among,
        redis_trips=(after.redis_trips - before.redis_trips) / among,
        by_statement=each(statements),
        by_command=each(commands),
        by_text=each(after.texts - before.texts),
    )


def print_counts(console: Console, counted: Sequence[Count]) -> None:
    """A line for each count; below it the statements and commands that are the most of it."""
    table = Table(title="asked of the servers by one workflow")
    table.add_column("program")
    table.add_column("workflows")
    for heading in ("ms each", "SQL statements", "commits", "trips", "Redis commands", "trips"):
        table.add_column(heading, justify="right")
    table.add_column("most of them")
    for each in counted:
        table.add_row(
            each.program,
            each.when,
            f"{each.seconds * 1000:.0f}",
            f"{each.statements:.1f}",
            f"{each.commits:.1f}",
            f"{each.postgres_trips:.1f}",
            f"{each.commands:.1f}",
            f"{each.redis_trips:.1f}",
            "\n".join(filter(None, (_most(each.by_statement), _most(each.by_command)))),
        )
        if each.when.startswith("idle"):
            table.add_section()
    console.print(table)


def print_texts(console: Console, counted: Sequence[Count]) -> None:
    """How often each statement was executed."""
    for each in counted:
        console.print(f"{each.program}, {each.when}:", highlight=False)
        for text, number in each.by_text.items():
            if number >= RARE:
                line = f"{number:8.2f}  {text}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def _most(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {number:.1f}" for name, number in list(numbers.items())[:5])
