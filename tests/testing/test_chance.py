"""What code draws by chance in the virtual world depends on the seed of the run alone."""

from __future__ import annotations

import os
import random
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest

from eventmesh.testing.mesh.databases import Workshop, temporary_workshop
from eventmesh.testing.mesh.running import make_mesh, run


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with temporary_workshop() as made:
        yield made


def reseed() -> float:
    random.seed()
    return random.random()  # noqa: S311


DRAWS: Mapping[str, Callable[[], object]] = {
    "random": random.random,
    "random.seed": reseed,
    "random.Random": lambda: random.Random().random(),  # noqa: S311
    "random.SystemRandom": lambda: random.SystemRandom().random(),
    "secrets": lambda: (secrets.token_hex(8), secrets.choice(range(10**6))),
    "os.urandom": lambda: os.urandom(8),
    "os.getrandom": lambda: os.getrandom(8, flags=os.GRND_NONBLOCK),
    "uuid1": lambda: (uuid.uuid1(), uuid.uuid1()),
    "uuid4": uuid.uuid4,
}


def drawn(draw: Callable[[], object], workshop: Workshop, *, seed: int) -> object:
    found: list[object] = []

    async def body() -> None:
        found.append(draw())

    run(make_mesh(workshop), body, seed=seed)
    return found[0]


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_is_the_same_with_the_same_seed_only(
    name: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uuid, "_node", None)  # as in a new process
    if not hasattr(os, "getrandom") and name == "os.getrandom":
        pytest.skip("this system has no getrandom")
    one, again, other = (drawn(DRAWS[name], workshop, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("name", ["random.Random", "secrets", "os.urandom", "uuid4"])
def test_what_another_module_draws_changes_nothing(name: str, workshop: Workshop) -> None:
    """Such as one that is imported in the first run of a process only."""
    elsewhere = globals() | {"__name__": "elsewhere"}

    def draw_after_another() -> object:
        eval("secrets.token_bytes(), uuid.uuid4(), random.Random()", elsewhere)  # noqa: S307
        return DRAWS[name]()

    assert drawn(draw_after_another, workshop, seed=1) == drawn(DRAWS[name], workshop, seed=1)


def test_a_generator_with_a_seed_of_its_own_draws_what_it_always_does(workshop: Workshop) -> None:
    def draw() -> float:
        return random.Random("mine").random()  # noqa: S311

    assert drawn(draw, workshop, seed=1) == draw()


def test_chance_is_back_after_a_run(workshop: Workshop) -> None:
    for draw in (DRAWS["secrets"], DRAWS["random.Random"], uuid.uuid4):
        assert drawn(draw, workshop, seed=1) != draw() != draw()


def test_random_goes_on_after_a_run_where_it_was(workshop: Workshop) -> None:
    random.seed(5)
    state = random.getstate()
    drawn(random.random, workshop, seed=1)
    assert random.getstate() == state
