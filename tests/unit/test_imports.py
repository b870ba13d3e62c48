from __future__ import annotations

import subprocess
import sys

import pytest

import eventmesh

HEAVY = ("aio_pika", "alembic", "fast_depends", "pydantic", "redis", "sqlalchemy", "structlog")


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy libraries a fresh interpreter has loaded after this statement."""
    code = f"{statement}; import sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(  # noqa: S603  # our own interpreter and text
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    return set(done.stdout.split())


def test_importing_eventmesh_loads_no_library() -> None:
    assert loaded_after("import eventmesh") == set()


def test_declaring_a_message_loads_pydantic_and_nothing_else() -> None:
    assert loaded_after("from eventmesh import Event, Command") == {"pydantic"}


@pytest.mark.parametrize("name", dir(eventmesh))
def test_every_listed_name_is_there(name: str) -> None:
    assert getattr(eventmesh, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'eventmesh' has no attribute 'nothing'"):
        _ = eventmesh.nothing
