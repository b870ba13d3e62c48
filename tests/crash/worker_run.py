"""One run of a worker process: from its start until it is idle, or until it is killed.

A run happens in the testing kit's virtual world (`eventmesh.testing.virtual`), so it takes no real
time and passes the same crash points each time. It is not a `Mesh` of the kit, because the broker's
file and PostgreSQL are killed in the middle of a statement here. Run number 1 begins with a
deployment that holds unpublished and undelivered messages; run number 2 begins with what run 1 has
left when it was killed. After the last run, `invariants` says what is not as it must be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventmesh.clock import Clock
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.testing.virtual.clock import Ids, VirtualClock
from eventmesh.testing.virtual.loop import place_of
from eventmesh.testing.virtual.sqlite import KeptConnections, on_the_loop
from eventmesh.transports.base import PublishResult, Transport
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope
from tests.crash import invariants, sagas
from tests.crash.crash_points import Kill, WorkerRun, the_loop
from tests.crash.deployment import Deployment, empty, expire_leases, seed
from tests.crash.services import REFUSED, make_desk, make_ledger
from tests.crash.snapshots import Snapshots
from tests.crash.virtual_loop import ThreadlessLoop

Result = dict[str, Any]

BETWEEN_RUNS = 1_000.0
"""Seconds of loop time between the starts of two runs; every lease expires within them."""

LOOK_INTERVAL = 0.2
LONGEST = 60.0
"""Seconds of loop time after which a worker that is not idle counts as stuck."""


class RejectingTransport:
    """A transport that rejects the messages of one key, and may store a batch message by
    message."""

    def __init__(self, transport: Transport, sent: list[Envelope], *, atomic_batches: bool) -> None:
        self.atomic_batches = atomic_batches
        self._transport = transport
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        accepted = [each for each in envelopes if each.key != REFUSED]
        for part in [accepted] if self.atomic_batches else [[each] for each in accepted]:
            self._sent.extend(part)
            result = await self._transport.publish(part)
            if result.error is not None:
                return PublishResult.interrupted(envelopes, result.error)
        return PublishResult({each.id: "refused" for each in envelopes if each.key == REFUSED})


def run_worker(
    deployment: Deployment, number: int, kill: Kill = None, snapshot_folder: Path | None = None
) -> Result:
    """Run one worker on the deployment as the previous run has left it; run 1 seeds it first.

    Returns the points that run 1 passed and the violations at the end. With `snapshot_folder`, a
    copy of the files is kept there for each point.
    """
    run = WorkerRun(kill, counts=number == 1 or kill is not None)
    snapshots = Snapshots(deployment, snapshot_folder, run) if snapshot_folder is not None else None
    if snapshots is not None:
        run.on_point = snapshots.take

    async def scenario(clock: Clock) -> Result:
        await prepare(deployment, number, clock)
        stop = asyncio.Event()
        working = start(run, deployment, clock, stop)
        found = await finish(deployment, stop, working)
        return {
            "points": run.points,
            "violations": found,
            "left": snapshots.left if snapshots else [],
        }

    return run_on_virtual_loop(deployment, number, scenario)


def run_two_workers(deployment: Deployment, kill: Kill = None) -> Result:
    """Run two workers side by side, of which the first is killed and the second continues.

    Competing consumers keep no order, so only the order in which the relays published is checked.
    """
    first, second = WorkerRun(kill, exits=False), WorkerRun(exits=False, counts=False)

    async def scenario(clock: Clock) -> Result:
        await prepare(deployment, 1, clock)
        stop, sent = asyncio.Event(), list[Envelope]()
        killed, working = (start(each, deployment, clock, stop, sent) for each in (first, second))
        await until_idle(deployment, working, sooner=lambda: first.is_dead)
        first.kill_at, passed = None, list(first.points)
        if first.is_dead:
            await prepare(deployment, 2, clock)
            await asyncio.sleep(deployment.taken_over_after)
        ends = [working] if first.is_dead else [working, killed]
        found = await finish(deployment, stop, *ends, ordered=False)
        with observing():
            found += await invariants.order_violations(deployment, sent)
        return {"points": passed, "violations": found, "reached": [first.is_dead]}

    return run_on_virtual_loop(deployment, 1, scenario)


def run_on_virtual_loop(
    deployment: Deployment, number: int, scenario: Callable[[Clock], Coroutine[Any, Any, Result]]
) -> Result:
    """Run a scenario on a new virtual loop."""
    random.seed(number)
    loop = ThreadlessLoop(BETWEEN_RUNS * number, with_servers=deployment.has_server)
    kept = KeptConnections()
    asyncio.set_event_loop(loop)
    try:
        with on_the_loop(kept):
            return loop.run_until_complete(scenario(VirtualClock(loop, Ids())))
    finally:
        kept.close()


async def prepare(deployment: Deployment, number: int, clock: Clock) -> None:
    """Seed the deployment before run 1; before a later run, let the dead worker's leases
    expire."""
    with observing():
        if number > 1:
            await expire_leases(deployment)
        elif deployment.has_sagas:
            await seed_sagas(deployment, clock)
        else:
            await seed(deployment, clock)


async def seed_sagas(deployment: Deployment, clock: Clock) -> None:
    """Begin a schedule of sagas: what starts them is in the desk's outbox."""
    await empty(deployment)
    desk, _ = sagas.make_services(clock)
    desk.configure(deployment.settings())
    async with desk:
        await sagas.open_sales(desk)


async def finish(
    deployment: Deployment, stop: asyncio.Event, *working: asyncio.Task[None], ordered: bool = True
) -> list[str]:
    """Wait until the workers are idle, drain them, and return the violations."""
    found = [] if await until_idle(deployment, *working) else ["the workers did not become idle"]
    stop.set()
    await asyncio.wait(working, timeout=LONGEST)
    for task in working:
        if not task.done():
            waits = sorted(map(place_of, asyncio.all_tasks()))
            return [*found, f"a worker does not stop; its tasks wait at {waits}"]
        task.result()
    with observing():
        if deployment.has_sagas:
            return found + await sagas.violations(deployment)
        return found + await invariants.violations(deployment, ordered=ordered)


@contextmanager
def observing() -> Iterator[None]:
    """While the context is open, the loop waits for servers that the test itself queries."""
    the_loop().awaited_answers += 1
    try:
        yield
    finally:
        the_loop().awaited_answers -= 1


def start(
    run: WorkerRun,
    deployment: Deployment,
    clock: Clock,
    stop: asyncio.Event,
    sent: list[Envelope] | None = None,
) -> asyncio.Task[None]:
    """Start a worker, all of whose steps belong to this run. `sent` collects what it publishes."""
    work = _work(deployment, clock, stop, [] if sent is None else sent)
    return the_loop().create_task(work, context=run.context())


async def _work(
    deployment: Deployment, clock: Clock, stop: asyncio.Event, sent: list[Envelope]
) -> None:
    settings = deployment.settings()
    if deployment.has_sagas:
        services = sagas.make_services(clock)
    else:
        services = [make_desk(clock), make_ledger(clock)]
    async with open_transport(settings.broker_url, clock, settings.transport_options) as transport:
        rejecting = RejectingTransport(transport, sent, atomic_batches=deployment.atomic_batches)
        await Worker(services, rejecting, settings, clock).run(stop)


async def until_idle(
    deployment: Deployment, *working: asyncio.Task[None], sooner: Callable[[], bool] = lambda: False
) -> bool:
    """Poll until nothing is left to do; False after LONGEST, when a worker has failed, or once
    `sooner` holds."""
    loop = the_loop()
    until = loop.time() + LONGEST
    while loop.time() < until and not sooner():
        await asyncio.sleep(LOOK_INTERVAL)
        loop.progressed()
        with observing():
            if await (sagas if deployment.has_sagas else invariants).is_idle(deployment):
                return True
        if any(task.done() for task in working):
            return False
    return False
