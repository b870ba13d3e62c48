"""How to start Redis for tests, in a container or privately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eventmesh.testing.servers.answering import Refused
from eventmesh.testing.servers.processes import Running, free_port, running
from eventmesh.testing.servers.recipe import Place, Recipe

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


def _url(address: str, password: str) -> str:
    return f"redis://:{password}@{address}/0"


async def _greet(url: str) -> str:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    try:
        async with Redis.from_url(url) as client:
            await client.ping()  # refused while the data is being loaded
            told = await client.info("server")
    except RedisError as error:
        raise Refused(str(error)) from error
    return str(told["redis_version"])


def _container(image: str, password: str) -> DockerContainer:
    from testcontainers.community.redis import RedisContainer

    container = RedisContainer(image, password=password)
    container.with_command(["redis-server", "--requirepass", password, "--appendonly", "yes"])
    return container


class _PrivateRedis:
    def __init__(self, place: Place) -> None:
        self._place = place
        port = free_port()
        self.url = _url(f"127.0.0.1:{port}", place.password)
        self._settings = place.folder / "redis.conf"
        # In a file, because command lines are visible in the process list.
        self._settings.write_text(
            f"port {port}\nbind 127.0.0.1\nrequirepass {place.password}\n"
            f'dir "{place.data}"\nappendonly yes\nsave ""\n'
        )

    def initialise(self) -> None:
        self._place.data.mkdir()

    @contextmanager
    def run(self) -> Iterator[tuple[Running, ...]]:
        [binary] = self._place.binaries
        with running([binary, str(self._settings)], self._place.folder) as process:
            yield (process,)


RECIPE = Recipe(
    kind="redis",
    schemes=("redis", "rediss"),
    url=_url,
    greet=_greet,
    image="redis:8",
    port=6379,
    container=_container,
    binaries=("redis-server",),
    places=("$PATH", "/usr/sbin"),
    private=_PrivateRedis,
)
