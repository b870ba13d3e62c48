"""The planted bugs, and how a simulation is run on one of the two programs."""

from __future__ import annotations

from types import ModuleType

from eventmesh.testing.mesh.databases import Workshop
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation.search import Options, Report, simulate
from tests.testing.planted import (
    check_then_act,
    effect_outside_transaction,
    external_call,
    lost_update,
    memory_as_store,
    order_across_keys,
    publish_before_commit,
    saga_without_undo,
    undo_assumes_step,
)

PROGRAMS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        check_then_act,
        effect_outside_transaction,
        external_call,
        lost_update,
        memory_as_store,
        order_across_keys,
        publish_before_commit,
        saga_without_undo,
        undo_assumes_step,
    )
}


def search(name: str, which: str, workshop: Workshop, seeds: int = Options.seeds) -> Report:
    """Simulate the `broken` or the `corrected` program of this name."""
    module = PROGRAMS[name]
    program = getattr(module, which)
    return simulate(
        lambda mesh: module.body(mesh, program),
        lambda: make_mesh(workshop),
        Options(seeds=seeds),
    )
