"""How to start RabbitMQ for tests, in a container or privately."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from eventmesh.testing.servers.answering import Refused, refused_connection, wait_until_served
from eventmesh.testing.servers.processes import Running, free_ports, running
from eventmesh.testing.servers.recipe import SUPERUSER, Place, Recipe

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


def _url(address: str, password: str) -> str:
    return f"amqp://{SUPERUSER}:{password}@{address}/"


async def _greet(url: str) -> str:
    from aio_pika import Connection
    from aio_pika.connection import make_url
    from aiormq.exceptions import AMQPError

    connection = Connection(make_url(url))
    try:
        await connection.connect()
        await connection.channel()
        assert connection.transport is not None  # noqa: S101 - it is connected
        version = connection.transport.connection.server_properties["version"]
    except (AMQPError, EOFError) as error:
        raise Refused(str(error)) from error
    finally:
        await connection.close()
    return version.decode() if isinstance(version, bytes) else str(version)


def _container(image: str, password: str) -> DockerContainer:
    from testcontainers.community.rabbitmq import RabbitMqContainer

    container = RabbitMqContainer(
        image, port=RECIPE.port, username=SUPERUSER, password=password, vhost="/"
    )
    return container.with_env("RABBITMQ_MNESIA_BASE", _DATA)


_DATA = "/var/lib/rabbitmq/data"
"""A folder that no image has: a file system in memory takes the place of an existing folder with
its rights, but belongs to root, and RabbitMQ may run as another user."""


class _PrivateRabbitMQ:
    """A node with a name, a cookie, a configuration and an epmd of its own."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._port, self._distribution_port, self._mapper_port = free_ports(3)
        self._name = f"eventmesh-{secrets.token_hex(8)}@localhost"
        self.url = _url(f"127.0.0.1:{self._port}", place.password)
        files = {
            "environment.conf": "",
            "advanced.config": "[].\n",
            "enabled_plugins": "[].\n",
            "rabbitmq.conf": (
                f"listeners.tcp.local = 127.0.0.1:{self._port}\n"
                f"default_user = {SUPERUSER}\ndefault_pass = {place.password}\n"
            ),
        }
        for name, text in files.items():
            (place.folder / name).write_text(text)

    def initialise(self) -> None:
        """The node does that itself."""

    @contextmanager
    def run(self) -> Iterator[tuple[Running, ...]]:
        binary, epmd = self._place.binaries
        mapping = {"ERL_EPMD_PORT": str(self._mapper_port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        folder = self._place.folder
        with ExitStack() as stack:
            # Started by us and first, or the node would start one as a daemon that outlives it.
            mapper = stack.enter_context(
                running([epmd, "-port", str(self._mapper_port)], folder, environment=mapping)
            )
            wait_until_served(lambda: refused_connection(self._mapper_port), mapper.check)
            node = stack.enter_context(
                running([binary], folder, environment=mapping | self._environment())
            )
            yield mapper, node

    def _environment(self) -> dict[str, str]:
        """Each variable replaces a file or a port of the machine's own RabbitMQ; left out, Debian's
        `/etc/rabbitmq` would make this node a second `rabbit@localhost` on port 5672."""
        folder = self._place.folder
        return {
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{folder}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{self._place.data}",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
        }


RECIPE = Recipe(
    kind="rabbitmq",
    schemes=("amqp", "amqps"),
    url=_url,
    greet=_greet,
    image="rabbitmq:4",
    port=5672,
    container=_container,
    folders=(_DATA,),
    stopping=("rabbitmqctl", "shutdown"),  # a shell as first process would ignore SIGTERM
    binaries=("rabbitmq-server", "epmd"),
    # Debian's rabbitmq-server on PATH is a wrapper for its own instance and user.
    places=("/usr/lib/rabbitmq/bin", "$PATH", "/usr/sbin", "/usr/lib/erlang/erts-*/bin"),
    private=_PrivateRabbitMQ,
)
