"""A test that takes `mesh` is called as it was written: with its decorators, whatever its kind, and
whichever other plugins run coroutine functions."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock, patch

import pytest

from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh

LIMIT = 100
Test = Callable[..., Awaitable[None]]
HERE = sys.modules[__name__]


def with_limit(limit: int) -> Callable[[Test], Test]:
    """As people write decorators of their own."""

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        async def decorated(*args: Any, **kwargs: Any) -> None:
            with patch.object(HERE, "LIMIT", limit):
                await test(*args, **kwargs)

        return decorated

    return decorate


@patch.object(HERE, "LIMIT", 7)
async def test_what_is_patched_around_a_test_is_patched_in_it(mesh: Mesh) -> None:
    assert LIMIT == 7


@patch.object(HERE, "LIMIT")
async def test_a_test_is_given_its_mock(limit: Mock, mesh: Mesh) -> None:
    assert limit is LIMIT


@with_limit(8)
async def test_a_decorator_of_the_users_is_kept(mesh: Mesh) -> None:
    assert LIMIT == 8


@pytest.fixture
def item() -> str:
    return "an item"


@pytest.fixture
def function() -> str:
    return "a function"


async def test_a_test_may_have_any_other_fixtures(mesh: Mesh, item: str, function: str) -> None:
    assert (item, function) == ("an item", "a function")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_test_runs_on_the_loop_of_its_mesh_also_under_anyio(mesh: VirtualMesh) -> None:
    assert asyncio.get_running_loop() is mesh.loop


@pytest.mark.mesh(seeds=2)
@with_limit(9)
async def test_a_decorator_is_kept_in_each_run_of_a_simulation(mesh: Mesh) -> None:
    assert LIMIT == 9


class TestClass:
    """Tests of a class are called like others."""

    async def test_a_method_has_its_instance(self, mesh: Mesh) -> None:
        assert isinstance(self, TestClass)

    @staticmethod
    async def test_a_static_method_has_none(mesh: Mesh) -> None:
        assert isinstance(mesh, Mesh)

    @classmethod
    async def test_a_class_method_has_its_class(cls, mesh: Mesh) -> None:
        assert cls is TestClass
