"""Who may see the dashboard, and who may act.

Every request is authenticated, also those for the stylesheet and the stream of events. There are
three ways; exactly one of them is in force:

| way           | who is the user               | what is checked                            |
|---------------|-------------------------------|--------------------------------------------|
| `OnLoopback`  | who runs the dashboard        | both ends of the connection are of this    |
|               |                               | machine, the Host header names it, and no  |
|               |                               | proxy has passed the request on            |
| `ProxyHeader` | the name in a proxy's header  | the connection comes from that proxy       |
| a function    | whom the function returns     | what the function checks                   |

The Host header is checked against DNS rebinding: a page of another site may make its own name
resolve to 127.0.0.1, and the browser then connects to us, but still sends that site's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from eventmesh.errors import EventMeshError, UsageError

Role = Literal["viewer", "operator"]
"""A viewer sees everything; an operator may also act."""

MOST_NAME = 255
"""The longest name of a user in characters, as the action log keeps it."""

_PASSED_ON = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers by which a proxy says that it has forwarded a request."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is known. The name is written to the action log."""

    name: str
    role: Role

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MOST_NAME:
            raise UsageError(f"The name of a user must have 1 to {MOST_NAME} characters.")
        if self.role not in ("viewer", "operator"):
            raise UsageError(f"{self.role!r} is not a role: choose viewer or operator.")

    @property
    def may_act(self) -> bool:
        return self.role == "operator"


class Denied(EventMeshError):
    """The request is not served; the text tells its sender why. Raise it from `authenticate`."""


Authenticate = Callable[[HTTPConnection], Awaitable[User | None]]
"""Returns the user of a request; None, or Denied with a reason, where there is none."""


class OnLoopback:
    """Serves this machine only, as one user."""

    def __init__(self, user: User) -> None:
        self._user = user

    async def __call__(self, connection: HTTPConnection) -> User:
        client = connection.client
        reason = why_not_on_loopback(
            None if client is None else client.host,
            (connection.scope.get("server") or (None, None))[0],
            connection.headers,
        )
        if reason is not None:
            raise Denied(reason)
        return self._user


def why_not_on_loopback(
    client: str | None, server: str | None, headers: Mapping[str, str]
) -> str | None:
    """Why a request is not from this machine; None if it is."""
    if not _is_loopback(client) or not _is_loopback(server):
        return (
            "Without authentication, the dashboard serves only its own machine. Give it "
            "`authenticate`, or see `eventmesh dashboard --help` for reverse proxies."
        )
    if passed_on := [name for name in _PASSED_ON if name in headers]:
        return (
            f"A proxy has passed this request on (it has the header {passed_on[0]}), so that its "
            f"sender is unknown. Name the proxy's header for users: see `eventmesh dashboard "
            f"--help`."
        )
    host = host_of(headers.get("host", ""))
    if host != "localhost" and not _is_loopback(host):
        return "The request is not for this machine: open the page as http://127.0.0.1."
    return None


class ProxyHeader:
    """Takes the user from a header that a reverse proxy sets, and believes it only from that proxy.

    `proxies` are addresses or networks. `operators` are the users who may act; everybody else whom
    the proxy lets pass may look. The proxy must remove the header from what it receives.
    """

    def __init__(
        self, header: str, *, proxies: Collection[str], operators: Collection[str] = ()
    ) -> None:
        if not header.strip() or not proxies:
            raise UsageError("Name both the header, and the addresses of the proxies that set it.")
        self._header = header
        self._operators = frozenset(operators)
        self._proxies = [_network(each) for each in proxies]

    async def __call__(self, connection: HTTPConnection) -> User:
        client = connection.client
        if client is None or not _is_among(client.host, self._proxies):
            raise Denied("This request did not come from the reverse proxy: open its address.")
        names = connection.headers.getlist(self._header)
        if len(names) != 1 or not 0 < len(names[0]) <= MOST_NAME:
            raise Denied(
                f"The reverse proxy has not said who you are, in the header {self._header}."
            )
        return User(names[0], "operator" if names[0] in self._operators else "viewer")


def host_of(header: str) -> str:
    """The host in a Host header, without its port; empty if the header is not valid."""
    try:
        found = urlsplit(f"//{header}")
        return "" if found.path or found.query or "@" in header else found.hostname or ""
    except ValueError:
        return ""


def _is_loopback(address: str | None) -> bool:
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an address or a network, such as 10.0.0.0/8.") from None


def _is_among(host: str, networks: Collection[IPv4Network | IPv6Network]) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in networks)
