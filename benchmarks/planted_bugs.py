"""How soon simulation finds each planted bug: `python -m benchmarks.planted_bugs [NAME…]`.

The programs are those of the tests (tests/testing/planted). Each is simulated with the default
settings until its bug is found: seeds and CPU seconds are counted from the run without faults to
the failing seed, before that is made smaller.

Where detangle 0.1.0 is installed (`pip install detangle==0.1.0`), it is given the same programs,
see `plain_asyncio`. Two things are tried, each for SECONDS of CPU or ten times as long as ours
took, whichever is more:

    order      it chooses the order of all tasks, and how late timers fire
    cancelled  the same, and one task of a worker is cancelled at one of its first awaits: the
               nearest to a killed worker that it has. A worker that ends is started again

The mutants of EventMesh (tests/testing/test_mutants.py) follow; detangle is not given these.

Where it reports something, the corrected program gets the same time, so that what is found there,
too, does not count. The table is written to build/planted-bugs.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.testing.mesh.databases import Workshop, temporary_workshop
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation import search as simulation
from eventmesh.testing.simulation.plan import Plan
from eventmesh.testing.simulation.search import Body, Options, simulate
from tests.testing.planted.programs import PROGRAMS
from tests.testing.test_mutants import MUTANTS, Patch, mutated
from tests.testing.test_mutants import body as mutants_body

try:
    from benchmarks import plain_asyncio
    from benchmarks.plain_asyncio import Tried
except ModuleNotFoundError:
    plain_asyncio = None  # type: ignore[assignment]  # the column stays empty

TABLE = Path(__file__).parents[1] / "build" / "planted-bugs.md"

SECONDS = 10.0

HEAD = ("bug", "seed", "CPU s", "what had to go wrong", "detangle: order", "detangle: cancelled")


@dataclass(frozen=True, slots=True)
class Ours:
    """What simulation found: with which seed, after how many CPU seconds, and after what faults."""

    seed: int
    cpu_seconds: float
    faults: str


def ours(body: Body) -> Ours:
    """What the default settings find. SystemExit if they find nothing."""
    found_after, shrink = 0.0, simulation._shrink

    def noted(*arguments: object) -> object:
        nonlocal found_after
        found_after = time.process_time() - began_at
        return shrink(*arguments)  # type: ignore[arg-type]  # passed on

    with temporary_workshop() as workshop:
        began_at = time.process_time()
        simulation._shrink = noted  # type: ignore[assignment]  # as above
        try:
            failure = simulate(body, lambda: make_mesh(workshop), Options()).failure
        finally:
            simulation._shrink = shrink
    if failure is None:
        raise SystemExit("A bug was not found.")
    if failure.found_by == Plan(0):
        return Ours(0, time.process_time() - began_at, "nothing")
    parts = [fault.in_words() for fault in failure.plan.faults]
    parts += ["calls that take times of their own"] * failure.plan.has_pace
    return Ours(failure.found_by.seed, found_after, "; ".join(parts))


def theirs(name: str, workshop: Workshop, seconds: float, *, with_cancellation: bool) -> str:
    if plain_asyncio is None:
        return ""
    module = PROGRAMS[name]

    def tried(program: Service) -> Tried:
        return plain_asyncio.explore(
            module, program, workshop, seconds, with_cancellation=with_cancellation
        )

    broken = tried(module.broken)
    if broken.found and (wrongly := tried(module.corrected).found):
        return f"reports the corrected program, too: {wrongly.splitlines()[0]}"
    others = "".join(f", {number} {kind}" for kind, number in sorted(broken.others.items()))
    said = f"{broken.runs:,} runs, {broken.cpu_seconds:.1f} s{others}"
    return f"{'**found**' if broken.found else 'not found'}: {said}"


def row_of_program(name: str) -> Sequence[str]:
    module = PROGRAMS[name]
    found = ours(lambda mesh: module.body(mesh, module.broken))
    seconds = max(SECONDS, 10 * found.cpu_seconds)
    others = []
    for with_cancellation in (False, True):
        with temporary_workshop() as workshop:
            others.append(theirs(name, workshop, seconds, with_cancellation=with_cancellation))
    return row(name, found, *others)


def row_of_mutant(mutate: Patch) -> Sequence[str]:
    with mutated(mutate):
        found = ours(mutants_body)
    return row(f"EventMesh: {mutate.__name__}", found, "", "")


def row(name: str, found: Ours, *others: str) -> Sequence[str]:
    words = name.replace("_", " ")
    return words, str(found.seed), f"{found.cpu_seconds:.1f}", found.faults, *others


def main(names: Sequence[str]) -> None:
    rows = [partial(row_of_program, name) for name in names or PROGRAMS]
    if not names:
        rows += [partial(row_of_mutant, mutate) for mutate in MUTANTS]
    lines: list[Sequence[str]] = [HEAD, ("---",) * len(HEAD)]
    for make in rows:
        lines.append(make())
        print(*lines[-1], sep=" | ", flush=True)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
