"""What pytest says of tests with `mesh` that fail: a test file of a user's, run once."""

from __future__ import annotations

import os
from functools import partial

import pytest

from tests.integration.conftest import Running
from tests.integration.forks import Forks

TESTS = """
from hypothesis import given
from hypothesis import strategies as st


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


def test_a_test_of_given_cannot_take_a_mesh(printed: str) -> None:
    assert "test_bank.py::test_of_given has @given, and all examples would share" in printed
