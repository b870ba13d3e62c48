"""Who is served, and with which role."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from eventmesh.dashboard.access import (
    Denied,
    OnLoopback,
    ProxyHeader,
    User,
    host_of,
    why_not_on_loopback,
)
from eventmesh.errors import UsageError

LOCAL = {"host": "127.0.0.1:8088"}


def connection(client: str, *headers: tuple[str, str]) -> HTTPConnection:
    return HTTPConnection(
        {
            "type": "http",
            "client": (client, 50_000),
            "server": ("127.0.0.1", 8088),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        }
    )


@pytest.mark.parametrize("host", ["127.0.0.1:8088", "localhost:8088", "[::1]:8088", "127.0.0.1"])
def test_this_machine_is_served(host: str) -> None:
    assert why_not_on_loopback("127.0.0.1", "127.0.0.1", {"host": host}) is None
    assert why_not_on_loopback("::1", "::1", {"host": host}) is None


@pytest.mark.parametrize(
    ("client", "server", "headers"),
    [
        ("10.0.0.3", "127.0.0.1", LOCAL),
        ("127.0.0.1", "10.0.0.1", LOCAL),
        (None, None, LOCAL),
        ("127.0.0.1", "127.0.0.1", {"host": "evil.example"}),  # DNS rebinding
        ("127.0.0.1", "127.0.0.1", {"host": "127.0.0.1.evil.example"}),
        ("127.0.0.1", "127.0.0.1", {"host": "evil.example@127.0.0.1"}),
        ("127.0.0.1", "127.0.0.1", {"host": "localhost/evil.example"}),
        ("127.0.0.1", "127.0.0.1", {"host": ""}),
        ("127.0.0.1", "127.0.0.1", {}),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "x-forwarded-for": "10.0.0.3"}),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "forwarded": "for=10.0.0.3"}),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "via": "1.1 proxy"}),
    ],
)
def test_nobody_else_is_served_without_authentication(
    client: str | None, server: str | None, headers: dict[str, str]
) -> None:
    assert why_not_on_loopback(client, server, headers)


@pytest.mark.parametrize("header", ["[::1", "a b:c:d", "//x", "x?y", "\x00"])
def test_a_strange_host_header_names_no_loopback_host(header: str) -> None:
    assert host_of(header) not in ("localhost", "127.0.0.1", "::1")


async def test_who_runs_the_dashboard_is_the_user_on_this_machine() -> None:
    ada = User("ada", "operator")
    assert await OnLoopback(ada)(connection("127.0.0.1", ("Host", "localhost"))) == ada
    with pytest.raises(Denied, match="only its own machine"):
        await OnLoopback(ada)(connection("10.0.0.3", ("Host", "localhost")))


async def test_a_header_is_believed_from_its_proxy_only() -> None:
    way = ProxyHeader("X-Remote-User", proxies=["10.0.0.0/8"], operators=["ada"])
    assert await way(connection("10.0.0.7", ("X-Remote-User", "ada"))) == User("ada", "operator")
    assert await way(connection("10.0.0.7", ("X-Remote-User", "eve"))) == User("eve", "viewer")
    with pytest.raises(Denied, match="did not come from the reverse proxy"):
        await way(connection("127.0.0.1", ("X-Remote-User", "ada")))
    for headers in ([], [("X-Remote-User", "eve"), ("X-Remote-User", "ada")]):
        with pytest.raises(Denied, match="has not said who you are"):
            await way(connection("10.0.0.7", *headers))


def test_mistakes_in_the_declaration_are_named() -> None:
    with pytest.raises(UsageError, match="not an address or a network"):
        ProxyHeader("X-Remote-User", proxies=["proxy.example"])
    with pytest.raises(UsageError, match="Name both"):
        ProxyHeader("X-Remote-User", proxies=[])
    with pytest.raises(UsageError, match="is not a role"):
        User("ada", "admin")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="1 to 255 characters"):
        User("", "viewer")
