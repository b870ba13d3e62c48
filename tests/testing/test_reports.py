"""What pytest says of tests with `mesh` that fail: a test file of a user's, run once."""

from __future__ import annotations

import os
import re
from functools import partial

import pytest

from tests.integration.conftest import Running
from tests.integration.forks import Forks

TESTS = """
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Retry, Service, Transaction


class Base(DeclarativeBase): ...
class Row(Base):
    __tablename__ = "rows"
    name: Mapped[str] = mapped_column(primary_key=True)


class Do(Command, name="bank.do", version=1):
    name: str


service = Service("bank", metadata=Base.metadata)
calls = []


@service.subscriber(Do, retry=Retry(attempts=1))
async def do(command: Do, tx: Transaction) -> None:
    calls.append(command.name)
    if command.name == "bad":
        raise KeyError("currency")
    tx.session.add(Row(name=command.name))


@pytest.mark.mesh(seeds=2)
async def test_of_dead_letters(mesh):
    @mesh.eventually
    def it_is_there(read):
        assert read(service).scalars(select(Row)).all()

    await mesh.start(service)
    await mesh.publish(Do(name="bad"))


@pytest.mark.mesh(seeds=2)
async def test_of_a_mistake(mesh):
    await mesh.publish(Do(name="good"))
    raise LookupError("no such card")


@pytest.mark.mesh(seeds=2)
async def test_of_pytest_fail(mesh):
    await mesh.start(service)
    await mesh.publish(Do(name="good"))
    await mesh.quiet()
    pytest.fail("the card is charged")


@pytest.mark.mesh(seeds=100)
async def test_of_pytest_raises(mesh):
    calls.clear()
    await mesh.start(service)
    await mesh.publish(Do(name="good"))
    await mesh.settle()
    with pytest.raises(ValueError):
        if len(calls) == 1:
            raise ValueError


@pytest.mark.mesh(seeds=2)
async def test_of_skipping(mesh):
    pytest.skip("not here")


@given(number=st.integers())
async def test_of_given(mesh, number): ...
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> str:
    """All that pytest prints of these tests."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "test_bank.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    kept = {name: each for name, each in os.environ.items() if not name.startswith("EVENTMESH_")}
    command = ("pytest", "-p", "no:cacheprovider", "--tb=short")
    return Running(folder, partial(forks.begin, command, folder, kept)).ended().said


def section(printed: str, test: str) -> str:
    """What is printed of one test."""
    [found] = re.findall(rf"(?ms)^_+ {test} _+$(.*?)^(?:_+ \w|=)", printed)
    return str(found)


def test_the_run_without_faults_is_told_with_its_story_and_its_dead_letters(printed: str) -> None:
    said = section(printed, "test_of_dead_letters")
    assert "it_is_there must hold in the end, and does not: assert []" in said
    assert re.search(r"bank\.do has a dead letter of do #1: .*KeyError: 'currency'", said)
    assert "found by the run without faults" in said
    assert "do #1 dead" in said
    assert "Run it again: pytest 'test_bank.py::test_of_dead_letters' --mesh-replay='0'" in said


def test_a_mistake_in_a_test_is_told_with_its_place_and_the_story(printed: str) -> None:
    said = section(printed, "test_of_a_mistake")
    assert 'raise LookupError("no such card")' in said
    assert "LookupError: no such card" in said
    assert "published, and taken by nobody: do #1" in said


def test_pytest_fail_ends_a_run_like_an_assertion(printed: str) -> None:
    said = section(printed, "test_of_pytest_fail")
    assert "Failed: the card is charged" in said
    assert "├↺ do #1" in said


def test_pytest_raises_is_told_with_the_faults_that_it_took(printed: str) -> None:
    said = section(printed, "test_of_pytest_raises")
    assert "Failed: DID NOT RAISE" in said
    assert re.search(r"what had to go wrong:\n.*- ", said)
    assert re.search(r"--mesh-replay='\d+~", said)


def test_a_simulation_shows_no_other_mesh(printed: str) -> None:
    assert "what happened in the mesh" not in printed


def test_a_test_can_skip_itself(printed: str) -> None:
    assert "4 failed, 1 skipped, 1 error" in printed


def test_a_test_of_given_cannot_take_a_mesh(printed: str) -> None:
    assert "test_bank.py::test_of_given has @given, and all examples would share" in printed
