from __future__ import annotations

from pathlib import Path

import pytest

from eventmesh.errors import UsageError
from eventmesh.transports.rabbitmq.url import nodes


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://localhost", ["amqp://localhost"]),
        ("amqp://u:p@a:1/v?heartbeat=5", ["amqp://u:p@a:1/v?heartbeat=5"]),
        (
            "amqps://u:p@a:1,b,[::1]:3/v?x=1",
            ["amqps://u:p@a:1/v?x=1", "amqps://u:p@b/v?x=1", "amqps://u:p@[::1]:3/v?x=1"],
        ),
        ("amqp://a:1, b:2/", ["amqp://a:1/", "amqp://b:2/"]),
        ("amqp://u:p,q@s@a,b", ["amqp://u:p,q@s@a", "amqp://u:p,q@s@b"]),
    ],
)
def test_a_url_may_name_one_or_several_nodes(url: str, expected: list[str]) -> None:
    assert list(nodes(url)) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("amqp://", "amqp:///v", "amqp://u:s3cret@/", "amqp://u:s3cret@a,/", "amqp://u:s3cret@,b"),
        *("amqp://u:s3cret@a:x", "amqp://u:s3cret@a:1,b:99999", "amqp://u:s3cret@[::1"),
    ],
)
def test_a_url_without_a_host_or_with_an_invalid_port_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="amqp://user:password@host:port/virtualhost") as caught:
        nodes(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("option", ["cafile", "capath", "certfile", "keyfile"])
def test_the_error_names_a_certificate_file_that_does_not_exist(
    option: str, tmp_path: Path
) -> None:
    existing = tmp_path / "existing.pem"
    existing.touch()
    assert nodes(f"amqps://a/?{option}={existing}")
    with pytest.raises(UsageError, match=rf"{option} '/not/there\.pem', which does not exist"):
        nodes(f"amqps://a/?{option}=/not/there.pem")
