from __future__ import annotations

import subprocess
import sys

import pytest

import eventmesh

HEAVY = (
    *("aio_pika", "aiormq", "alembic", "fast_depends", "faststream", "opentelemetry", "pydantic"),
    *("redis", "sqlalchemy", "structlog"),
)


def loaded_after(statement: str) -> set[str]:
    """The heavy libraries that a new interpreter has loaded after this statement."""
    code = f"{statement}\nimport sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(  # noqa: S603  # our own interpreter and text
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_importing_eventmesh_loads_no_library() -> None:
    assert loaded_after("import eventmesh") == set()


def test_declaring_a_message_loads_only_pydantic() -> None:
    assert loaded_after("from eventmesh import Event, Command") == {"pydantic"}


def test_help_loads_no_library() -> None:
    showing_help = (
        "import contextlib, io\n"
        "from eventmesh.cli.main import app\n"
        "with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "    with contextlib.suppress(SystemExit): app(['--help'])\n"
        "assert 'asyncapi' in shown.getvalue()"
    )
    assert loaded_after(showing_help) == set()


def test_a_worker_on_redis_loads_no_library_of_another_broker() -> None:
    making = (
        "from eventmesh.clock import SystemClock\n"
        "from eventmesh.transports.base import TransportOptions\n"
        "from eventmesh.transports.factory import make_transport\n"
        "make_transport('redis://127.0.0.1/', SystemClock(), TransportOptions())"
    )
    assert not {"aio_pika", "aiormq", "faststream"} & loaded_after(making)


@pytest.mark.parametrize("name", dir(eventmesh))
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(eventmesh, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'eventmesh' has no attribute 'nothing'"):
        _ = eventmesh.nothing
