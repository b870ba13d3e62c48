"""Simulation finds each planted bug with its default settings, and lets each correct program pass.

See `planted`: each of the programs passes a run in which nothing goes wrong. Seeds decide what a
run does, so that what is found here is found each time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventmesh.testing.mesh.databases import Workshop, temporary_workshop
from eventmesh.testing.mesh.predicates import Violation
from tests.testing.planted.programs import PROGRAMS, search

SEEDS_OF_A_NORMAL_RUN = 6


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with temporary_workshop() as made:
        yield made


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_planted_bug_is_found(name: str, workshop: Workshop) -> None:
    failure = search(name, "broken", workshop).failure
    assert failure is not None
    assert failure.found_by.seed > 0  # without a fault, it passes
    assert isinstance(failure.error, Violation), failure.error


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_corrected_program_passes(name: str, workshop: Workshop) -> None:
    report = search(name, "corrected", workshop, SEEDS_OF_A_NORMAL_RUN)
    assert report.failure is None, report.failure
    assert report.runs == SEEDS_OF_A_NORMAL_RUN


@pytest.mark.soak
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_corrected_program_passes_all_seeds(name: str, workshop: Workshop) -> None:
    assert search(name, "corrected", workshop).failure is None
