"""TLS, user and password, as given in the URL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.testing.servers.processes import free_port
from eventmesh.transports.base import TransportOptions, publish_or_raise
from eventmesh.transports.outcome import DONE
from eventmesh.transports.redis.transport import RedisTransport
from tests.integration.certificates import make_certificates
from tests.integration.redis_nodes import Node, nodes, until
from tests.integration.redis_traffic import PAID, envelopes, opened

PASSWORD = "p@ss/wörd?&#:"  # noqa: S105


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and `server.pem` and `client.pem` that it signed, with their keys."""
    return make_certificates(tmp_path_factory.mktemp("certificates"), "IP:127.0.0.1,DNS:localhost")


@pytest.fixture(scope="module")
def node(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A Redis that accepts only TLS, and only clients with a certificate of the same authority."""
    folder = tmp_path_factory.mktemp("redis")
    with nodes(folder) as keep:
        node = keep(tls_node(folder / "node", certificates)).start()
        node.tell("ACL", "SETUSER", "payments", "on", f">{PASSWORD}", "~*", "+@all")
        yield node


def tls_node(folder: Path, certificates: Path, *arguments: str, **settings: str) -> Node:
    node = Node(
        folder,
        *arguments,
        tls=True,
        port="0",
        tls_cert_file=str(folder / "server.pem"),
        tls_key_file=str(folder / "server.key"),
        tls_ca_cert_file=str(folder / "ca.pem"),
        **settings,
    )
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(certificates / name, folder)
    node.client_options = {
        "ssl": True,
        "ssl_ca_certs": str(certificates / "ca.pem"),
        "ssl_certfile": str(certificates / "client.pem"),
        "ssl_keyfile": str(certificates / "client.key"),
    }
    return node


def url_of(node: Node, certificates: Path, password: str = PASSWORD, **changes: str) -> str:
    files = {
        "ssl_ca_certs": certificates / "ca.pem",
        "ssl_certfile": certificates / "client.pem",
        "ssl_keyfile": certificates / "client.key",
    } | changes
    query = "&".join(f"{name}={quote(str(value))}" for name, value in files.items())
    return f"rediss://payments:{quote(password, safe='')}@127.0.0.1:{node.port}/0?{query}"


async def test_messages_are_sent_over_tls(node: Node, certificates: Path) -> None:
    async with opened(url_of(node, certificates)) as transport:
        await transport.declare([PAID])
        sent = envelopes(3)
        await publish_or_raise(transport, sent)
        async with transport.consume(PAID, prefetch=3) as consumer:
            got = [each for _ in sent for each in await consumer.receive(1)]
            await consumer.settle([(delivery, DONE) for delivery in got])
        assert [delivery.envelope for delivery in got] == sent


async def test_the_nodes_of_a_cluster_are_discovered_over_tls(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cluster")
    with nodes(folder) as keep:
        node = keep(
            tls_node(folder / "node", certificates, cluster_enabled="yes", tls_cluster="yes")
        )
        node.settings["cluster-port"] = str(free_port())
        node.start()
        node.tell("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: b"cluster_state:ok" in node.tell("CLUSTER", "INFO"), "a cluster")
        node.tell("ACL", "SETUSER", "payments", "on", f">{PASSWORD}", "~*", "+@all")
        url = url_of(node, certificates).replace("rediss://", "rediss+cluster://")
        async with opened(url) as transport:
            await publish_or_raise(transport, envelopes(3))


async def test_sentinels_are_queried_over_tls(
    node: Node, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sentinel")
    with nodes(folder) as keep:
        sentinel = keep(
            tls_node(folder / "node", certificates, "--sentinel", tls_replication="yes")
        )
        for unknown in ("save", "enable-debug-command", "enable-protected-configs"):
            sentinel.settings.pop(unknown)
        sentinel.settings |= {
            "sentinel monitor": f"shop 127.0.0.1 {node.port} 1",
            "sentinel auth-pass": f"shop {node.password}",
        }
        sentinel.start()
        url = url_of(sentinel, certificates, sentinel_password=sentinel.password)
        url = url.replace("rediss://", "rediss+sentinel://").replace("/0?", "/shop/0?")
        async with opened(url) as transport:
            await publish_or_raise(transport, envelopes(3))


async def test_a_server_certificate_of_another_authority_is_rejected(
    node: Node, certificates: Path
) -> None:
    stranger = str(certificates / "client.pem")
    with pytest.raises(Unreachable, match="certificate"):
        async with opened(url_of(node, certificates, ssl_ca_certs=stranger)):
            pass


async def test_a_wrong_password_is_reported_without_showing_it(
    node: Node, certificates: Path
) -> None:
    url = url_of(node, certificates, "hunter2")
    transport = RedisTransport(url, SystemClock(), TransportOptions())
    with pytest.raises(Unreachable, match=r"rejected a command.*user and password") as caught:
        await transport.connect()
    assert "hunter2" not in str(caught.value)
    await transport.close()
    assert not transport._redis._sockets, "closing waits for the end of a TLS connection"


async def test_the_error_for_a_missing_certificate_file_names_it(
    node: Node, certificates: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"ssl_ca_certs names the file /nowhere/ca\.pem, which does not exist"
    ):
        async with opened(url_of(node, certificates, ssl_ca_certs="/nowhere/ca.pem")):
            pass
