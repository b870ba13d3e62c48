"""What has to be known of a kind of server in order to start it, and the words for not being able
to."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from eventmesh.testing.servers.processes import Account, Running

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

SUPERUSER = "eventmesh"

Way = Literal["container", "private"]
"""How a server that is not given can be had."""

WAYS: tuple[Way, ...] = ("container", "private")
"""In the order in which they are tried."""


def new_password() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a private server lives: its folder, its programs as found, and who runs them."""

    folder: Path
    binaries: tuple[str, ...]
    account: Account | None = None
    password: str = field(default_factory=new_password, repr=False)

    @property
    def data(self) -> Path:
        """The one folder with everything that the server stores."""
        return self.folder / "data"


class PrivateServer(Protocol):
    """A server in its place. Its files outside the place's `data` are there once it is made."""

    @property
    def url(self) -> str:
        """Always the same."""
        ...

    def initialise(self) -> None:
        """Make what has to be in `data`, which is not there, before the first start."""
        ...

    def run(self) -> AbstractContextManager[tuple[Running, ...]]:
        """Its processes, the server itself last; leaving stops them gracefully."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is particular to one kind of server.

    `url` is given the address, "host:port", and the password; `greet` talks to the server of a URL
    and returns its version. Its `container` listens on `port` and takes `image`; where SIGTERM is
    not the way to end it gracefully and soon, the command `stopping`, run inside, is. Its private
    server needs `binaries`, looked for in `places`, and runs under another account than root if
    it must be `unprivileged`.
    """

    kind: str
    schemes: tuple[str, ...]
    url: Callable[[str, str], str]
    greet: Callable[[str], Awaitable[str]]
    image: str
    port: int
    container: Callable[[str, str], DockerContainer]
    binaries: tuple[str, ...]
    places: tuple[str, ...]
    private: Callable[[Place], PrivateServer]
    stopping: tuple[str, ...] = ()
    unprivileged: bool = False


def variable(kind: str, what: str) -> str:
    """The environment variable that tells this about a kind of server."""
    return f"EVENTMESH_TEST_{kind.upper()}_{what}"
