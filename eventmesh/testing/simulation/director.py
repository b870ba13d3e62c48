"""Makes the faults of a plan happen in a mesh, and puts everything right in the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from eventmesh.testing.mesh.request import Request
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
from eventmesh.testing.mesh.worker import WorkerProcess
from eventmesh.testing.simulation.plan import COUNTED_BY, TELLING_CALLS, Fault, Plan, Point, Profile
from eventmesh.testing.virtual.loop import place_of
from eventmesh.testing.virtual.process import Answer, Process, outside_processes

_AT_ONCE = Answer()
_PACE_CHANGES = 40
"""After so many calls, on average, a process gets another speed."""


class Director:
    """Disturbs the processes of one mesh as a plan says. `notes_places` makes it note where each
    process was at each step, which a profile needs and takes time."""

    def __init__(self, mesh: VirtualMesh, plan: Plan, *, notes_places: bool = False) -> None:
        self._mesh = mesh
        self._plan = plan
        self._at: dict[tuple[str, str, int], list[Fault]] = defaultdict(list)
        for fault in plan.faults:
            counted = fault.call or COUNTED_BY[fault.kind]
            self._at[counted, fault.process, fault.number].append(fault)
        self._told = Counter[tuple[str, str]]()
        """How many telling calls of each kind each process has made."""
        self._away_until: dict[str, float] = {}
        self._paces: dict[str, _Pace] = {}
        self._notes_places = notes_places
        self._places: dict[str, list[Point]] = defaultdict(list)
        self._calls: dict[str, list[Point]] = defaultdict(list)
        self._is_over = False
        self._timers: list[asyncio.TimerHandle] = []
        self._restarting: list[asyncio.Task[None]] = []
        self.happened = Counter[str]()
        """How many faults of each kind there were."""
        self.disturbed = set[str]()
        """The services whose processes have met a fault."""
        self.killed_at: set[str] = set()
        """The places in the code at which a process was killed."""

    # What processes ask

    def before_step(self, process: Process, task: asyncio.Task[Any]) -> None:
        if self._notes_places and (place := place_of(task)):
            self._places[place].append((process.name, process.steps))
        for fault in self._at.get(("step", process.name, process.steps), ()):
            self._strike(process, task, fault)

    def answer(self, process: Process, server: str, call: str) -> Answer:
        if self._is_over:
            return _AT_ONCE
        faults = self._at.get(("call", process.name, process.calls), [])
        if call in TELLING_CALLS:
            self._told[process.name, call] += 1
            number = self._told[process.name, call]
            faults = faults + self._at.get((call, process.name, number), [])
            if self._notes_places:
                kind = f"{process.service}: {server}: {call}"
                self._calls[kind].append((process.name, number))
                self._places[kind].append((process.name, process.steps + 1))  # of the call itself
        delay = 0.0
        if self._plan.has_pace:
            delay = self._pace_of(process).next()
        error = ""
        for fault in faults:
            self._count(process, fault, f"{server}: {call}")
            if fault.kind == "slow":
                delay += fault.amount
            elif fault.kind == "outage":
                self._away_until[server] = self._mesh.loop.now + fault.amount
            else:
                error = fault.how
        if self._away_until.get(server, 0.0) > self._mesh.loop.now:
            error = "before"
        if not delay and not error:
            return _AT_ONCE
        return Answer(delay, error)  # type: ignore[arg-type]  # of the plan, which is checked

    def copies(self, number: int) -> int:
        """How often the broker stores the n-th message."""
        faults = [] if self._is_over else self._at.get(("message", "broker", number), [])
        for fault in faults:
            self.happened[fault.kind] += 1
            self.disturbed.add("broker")
        return 1 + len(faults)

    # The end

    @property
    def next_return(self) -> float | None:
        return min(
            (timer.when() for timer in self._timers if self._is_pending(timer)), default=None
        )

    async def let_all_return(self) -> None:
        """Wait for who was killed to be started again, and who stands still to go on."""
        while (at := self.next_return) is not None:
            await self._mesh.advance(at - self._mesh.loop.now)
        for task in self._restarting:
            await task

    async def put_right(self) -> None:
        """No more faults: who stands still goes on, and who was killed is started again."""
        self._is_over = True
        self._away_until.clear()
        for timer in self._timers:
            timer.cancel()
        for task in self._restarting:
            await task
        for process in self._mesh.processes:
            if not process.is_dead:
                process.resume()
                process.clock_skew = 0.0
        for service in self._mesh.started:
            if not any(worker.service.name == service.name for worker in self._mesh.workers):
                await self._mesh.restart(service)

    def profile(self, mesh: VirtualMesh) -> Profile:
        """What the processes have passed."""
        processes = mesh.processes
        return Profile(
            {process.name: process.steps for process in processes},
            {process.name: process.calls for process in processes},
            len(mesh.record.published),
            self._places,
            self._calls,
        )

    def _is_pending(self, timer: asyncio.TimerHandle) -> bool:
        return not timer.cancelled() and timer.when() > self._mesh.loop.time()

    # Faults

    def _strike(self, process: Process, task: asyncio.Task[Any], fault: Fault) -> None:
        running: list[WorkerProcess | Request] = [*self._mesh.workers, *self._mesh.requests]
        struck = next((each for each in running if each.process is process), None)
        if self._is_over or struck is None:
            return
        self._count(process, fault)
        match fault.kind:
            case "kill":
                self.killed_at.add(place_of(task))
                if isinstance(struck, Request):
                    self._mesh.end_request(struck)
                else:
                    self._mesh.end_worker(struck)
                    self._later(fault.amount, lambda: self._restart(process.service))
            case "pause":
                process.pause()
                self._later(fault.amount, process.resume)
            case "skew":
                process.clock_skew += fault.amount

    def _restart(self, service: str) -> None:
        found = next(each for each in self._mesh.started if each.name == service)
        self._restarting.append(asyncio.ensure_future(self._mesh.restart(found)))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        with outside_processes():
            self._timers.append(self._mesh.loop.call_later(seconds, call))

    def _count(self, process: Process, fault: Fault, where: str = "") -> None:
        self.happened[fault.kind] += 1
        hit = self._mesh.processes if fault.kind == "outage" else [process]
        self.disturbed |= {each.service for each in hit}
        if fault.kind != "kill":  # which the mesh notes itself
            text = f"{fault.in_words()} ({where})" if where else fault.in_words()
            self._mesh.record.note(process.service, text, "fault")

    def _pace_of(self, process: Process) -> _Pace:
        if process.name not in self._paces:
            self._paces[process.name] = _Pace(f"{self._plan.seed}/{process.name}")
        return self._paces[process.name]


class _Pace:
    """How long the calls of one process take. Most are answered at once; its speed for the others
    changes from time to time, so that each process is sometimes the slowest of all."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(seed)  # noqa: S311  # not for secrets
        self._speed = 0.0

    def next(self) -> float:
        chance = self._chance
        if chance.random() < 1 / _PACE_CHANGES or not self._speed:
            self._speed = 10 ** chance.uniform(-4, -1)
        return chance.expovariate(1) * self._speed if chance.random() < 0.3 else 0.0
