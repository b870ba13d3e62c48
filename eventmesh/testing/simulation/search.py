"""Runs a test seed after seed, until one fails, and then makes what went wrong smaller.

Seed 0 is a run without faults; if it passes, it shows which points a run passes. When a seed
fails, each part of its plan is left out in turn, and stays out if the run fails all the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from eventmesh.testing.mesh.garbage import collected_between_runs
from eventmesh.testing.mesh.predicates import FAILED, name_of
from eventmesh.testing.mesh.running import run
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
from eventmesh.testing.simulation.checks import check_end, endings
from eventmesh.testing.simulation.director import Director
from eventmesh.testing.simulation.plan import Plan, draw

Body = Callable[[VirtualMesh], Awaitable[None]]

AUDIT_EVERY = 16
"""The balance sheet is drawn up in one run of so many, because it costs as much as a run."""

_MOST_SHRINKING = 60
"""How many runs at most are spent on making a plan smaller."""


@dataclass(frozen=True)
class Options:
    """How a simulation is run: `seeds` at most, or for `seconds` of real time."""

    seeds: int = 100
    seconds: float | None = None
    allows_dead_letters: bool = False
    first: int = 0


@dataclass(frozen=True)
class Failure:
    """A run that failed: its smallest plan, the error and what happened in it.

    `needs_earlier_runs` says that plans do not decide alone how a run ends, but also what earlier
    runs have left, for example in a variable of a module: in a new process, `plan` may pass.
    """

    plan: Plan
    found_by: Plan
    error: BaseException
    story: str
    needs_earlier_runs: bool = False

    @property
    def is_mistake(self) -> bool:
        """Whether the test itself is wrong: no fault was needed, and nothing that was asserted does
        not hold."""
        return self.found_by == Plan(0) and not isinstance(self.error, FAILED)


@dataclass
class Report:
    """What a simulation has tried."""

    runs: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    places: int = 0
    """How many places in the code the run without faults has passed."""
    killed_at: set[str] = field(default_factory=set)
    handlers: Counter[str] = field(default_factory=Counter)
    """How often each handler was called; 0 for one that never was."""
    endings: Counter[str] = field(default_factory=Counter)
    """How many sagas ended in each way, as `orders.fulfil_order undone`."""
    held: set[str] = field(default_factory=set)
    failure: Failure | None = None


@dataclass
class _Outcome:
    mesh: VirtualMesh
    director: Director
    error: BaseException | None
    endings: Counter[str]


def simulate(
    body: Body,
    make: Callable[[], VirtualMesh],
    options: Options,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Run `body` with one seed after another, each on a mesh from `make`. The report tells what
    failed, if anything did."""
    report, began_at = Report(), time.perf_counter()
    first = _run(body, make, Plan(0), options, notes_places=True)
    profile = first.director.profile(first.mesh)
    report.places = len(profile.places)
    _add(report, first)
    if first.error is not None:
        report.seconds = time.perf_counter() - began_at
        report.failure = Failure(Plan(0), Plan(0), first.error, first.mesh.story())
        return report
    with collected_between_runs() as collect:
        for seed in range(max(options.first, 1), options.first + options.seeds):
            report.seconds = time.perf_counter() - began_at
            progress(report)
            if options.seconds is not None and report.seconds >= options.seconds:
                break
            plan = draw(seed, profile)
            outcome = _run(body, make, plan, options)
            _add(report, outcome)
            if outcome.error is not None:
                report.failure = _shrink(body, make, plan, outcome, options, collect)
                break
            del outcome
            collect()
    report.seconds = time.perf_counter() - began_at
    missing = [
        name for name in map(name_of, first.mesh.predicates.sometimes) if name not in report.held
    ]
    if report.failure is None and missing:
        report.failure = Failure(
            Plan(0),
            Plan(0),
            AssertionError(f"{', '.join(missing)} must hold at least once, and never did."),
            first.mesh.story(),
        )
    return report


def replay(
    body: Body, make: Callable[[], VirtualMesh], plan: Plan, options: Options
) -> Failure | None:
    """Run this plan once; None if it passes."""
    outcome = _run(body, make, plan, options)
    if outcome.error is None:
        return None
    return Failure(plan, plan, outcome.error, outcome.mesh.story())


def _run(
    body: Body,
    make: Callable[[], VirtualMesh],
    plan: Plan,
    options: Options,
    *,
    notes_places: bool = False,
) -> _Outcome:
    mesh = make()
    director = Director(mesh, plan, notes_places=notes_places)
    mesh.disturbances = director

    ended = Counter[str]()

    async def whole() -> None:
        await body(mesh)
        await mesh.settle()  # while things go wrong
        await director.let_all_return()
        await mesh.settle()
        await director.put_right()
        await mesh.settle()
        ended.update(endings(mesh))
        await check_end(
            mesh,
            director.disturbed,
            allows_dead_letters=options.allows_dead_letters,
            audits=plan.seed % AUDIT_EVERY == 0,
        )

    try:
        run(mesh, whole, seed=plan.seed)
    except (Exception, *FAILED) as error:  # noqa: BLE001  # whatever it is, the test has found it
        return _Outcome(mesh, director, error, ended)
    return _Outcome(mesh, director, None, ended)


def _add(report: Report, outcome: _Outcome) -> None:
    mesh = outcome.mesh
    report.runs += 1
    report.faults += outcome.director.happened
    report.killed_at |= outcome.director.killed_at
    report.held |= mesh.predicates.held
    for service in mesh.started:
        for name in service.handlers:
            report.handlers[name] += mesh.effects.calls[name]
    report.endings += outcome.endings


def _shrink(
    body: Body,
    make: Callable[[], VirtualMesh],
    plan: Plan,
    outcome: _Outcome,
    options: Options,
    collect: Callable[[], None],
) -> Failure:
    smallest, runs = (plan, outcome), 0
    improved = True
    while improved and runs < _MOST_SHRINKING:
        improved = False
        for smaller in smallest[0].smaller():
            runs += 1
            collect()
            tried = _run(body, make, smaller, options)
            if tried.error is not None and _is_alike(tried.error, outcome.error):
                smallest, improved = (smaller, tried), True
                break
    error = smallest[1].error
    assert error is not None  # noqa: S101  # only failed runs are kept
    collect()
    again = _run(body, make, smallest[0], options)
    without_faults = _run(body, make, Plan(0), options)  # which has passed at first
    is_kept = without_faults.error is not None or not _is_alike(error, again.error)
    return Failure(smallest[0], plan, error, smallest[1].mesh.story(), is_kept)


def _is_alike(one: BaseException, other: BaseException | None) -> bool:
    """Whether two runs failed in the same way: a smaller plan may find something else."""
    return type(one) is type(other)
