from __future__ import annotations

import pytest

from eventmesh.errors import UsageError
from eventmesh.redact import redact
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.factory import SCHEMES, make_transport


@pytest.mark.parametrize("scheme", ["sqlite", "redis", "rediss", "amqp", "amqps", "memory"])
def test_every_known_scheme_has_a_transport(scheme: str) -> None:
    assert scheme in SCHEMES
    rest = "/broker.db" if scheme == "sqlite" else "localhost"
    assert make_transport(f"{scheme}://{rest}", ManualClock(), TransportOptions())


@pytest.mark.parametrize("url", ["", "kafka://host", "redis", "/path/broker.db", "http://u:s3@h"])
def test_an_unknown_scheme_is_rejected_and_the_error_lists_the_known_ones(url: str) -> None:
    with pytest.raises(UsageError, match="Set EVENTMESH_BROKER_URL to one of: sqlite://") as caught:
        make_transport(url, ManualClock(), TransportOptions())
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("amqp://user:secret@host/v?x=1", "amqp://user:***@host/v?x=1"),
        ("amqp://user:@host", "amqp://user:***@host"),
        ("amqps://user:s%40cret@[::1]:5671/", "amqps://user:***@[::1]:5671/"),
        ("redis://:pa/ss@host", "redis://:***@host"),
        ("redis://:pa@ss?#@host", "redis://:***@host"),
        ("postgresql://u@h/db?password=secret", "postgresql://u@h/db?password=***"),
        ("amqps://h/?keyPassword=se&x=cret", "amqps://h/?keyPassword=***"),
        ("amqp://user@host", "amqp://user@host"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("memory://", "memory://"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
