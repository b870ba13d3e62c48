"""What is specific to a kind of server: how to start it, reach it and talk to it."""

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
"""How a server that the environment does not give is obtained."""

WAYS: tuple[Way, ...] = ("container", "private")
"""All ways, in the order in which they are tried."""


def new_password() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a private server, its binaries, and the account that runs them."""

    folder: Path
    binaries: tuple[str, ...]
    account: Account | None = None
    password: str = field(default_factory=new_password, repr=False)

    @property
    def data(self) -> Path:
        """The folder with everything that the server stores."""
        return self.folder / "data"


class PrivateServer(Protocol):
    """A private server. Its constructor writes all files outside `Place.data`."""

    @property
    def url(self) -> str:
        """The URL for clients; never changes."""
        ...

    def initialise(self) -> None:
        """Create `data` with what the server needs before its first start."""
        ...

    def run(self) -> AbstractContextManager[tuple[Running, ...]]:
        """Start its processes, the server itself last; leaving the context stops them."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is specific to one kind of server.

    `url` makes a URL from an address ("host:port") and a password; `greet` connects to a URL and
    returns the server's version. A URL of the environment has one of the `schemes`, and `completed`
    writes it as `url` does. `container` makes a container of `image` that listens on `port`, and
    stores its data in the image's volumes, or in one of `folders`; `stopping` is a command to run
    inside it where SIGTERM would not stop it gracefully and soon. The private server needs
    `binaries`, which are looked up in `places`; with `unprivileged` it never runs as root.
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
    folders: tuple[str, ...] = ("/tmp",)  # noqa: S108  # in a container
    stopping: tuple[str, ...] = ()
    unprivileged: bool = False
    completed: Callable[[str], str] = str


def variable(kind: str, what: str) -> str:
    """The environment variable with this property of a kind of server."""
    return f"EVENTMESH_TEST_{kind.upper()}_{what}"
