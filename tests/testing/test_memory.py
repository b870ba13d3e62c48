"""A run leaves nothing behind: many seeds need no more memory than a few."""

from __future__ import annotations

import gc
import weakref

from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
from eventmesh.testing.simulation.search import Options, simulate
from tests.testing.accounts import simulate_charges

SEEDS = 20  # among which workers are killed at many places


def test_the_meshes_of_earlier_runs_are_freed() -> None:
    made: list[weakref.ref[VirtualMesh]] = []
    most = 0

    with temporary_workshop() as workshop:

        def make() -> VirtualMesh:
            nonlocal most
            most = max(most, sum(each() is not None for each in made))
            mesh = make_mesh(workshop)
            made.append(weakref.ref(mesh))
            return mesh

        report = simulate(
            lambda mesh: simulate_charges(mesh, is_broken=False), make, Options(seeds=SEEDS)
        )
        assert report.faults["kill"] > 0
        assert most <= 3  # the run without faults, the one before, and what that one met
        gc.collect()
        assert [each() for each in made if each() is not None] == []
