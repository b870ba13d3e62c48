"""Servers for tests: from the environment, in a container, or from a binary of this machine.

    with serve("postgres") as server:
        async with fresh_database(server) as url:
            ...

    with serve_controlled("rabbitmq") as server:
        await server.kill()
        await server.start()

A server comes from, in this order:

1. its URL in the environment: EVENTMESH_TEST_REDIS_URL, EVENTMESH_TEST_RABBITMQ_URL,
   EVENTMESH_TEST_POSTGRES_URL, EVENTMESH_TEST_MARIADB_URL, EVENTMESH_TEST_PGBOUNCER_URL. Such a
   server is used as it is, and never started or stopped;
2. Docker, by testcontainers (`pip install 'testcontainers[postgres,rabbitmq,redis]'`); the image is
   EVENTMESH_TEST_REDIS_IMAGE and so on, and is pulled if it is missing;
3. a server binary of this machine, run on a free port of 127.0.0.1 in a temporary folder.

If all fail, `ServerMissing` lists the reasons. No other server is ever used: a server started here
has a random password, and counts as started only once it has accepted that password.

A process of its own, the keeper, owns each container or private server. It ends the server when
`serve` is left, and also when its standard input ends, because the test process was killed. Ryuk,
the container with which testcontainers would do this, is therefore not used; its image would be one
more that may be missing. Only a keeper that is itself killed by SIGKILL leaves something behind:
containers with the label `eventmesh.testing`, or processes in temporary folders named
`eventmesh-redis-*` and so on.

Each kind of server has a module: `redis_server`, `rabbitmq_server`, `postgres_server`,
`mariadb_server` and `pgbouncer_server`.
"""

from eventmesh.testing.servers.databases import fresh_database
from eventmesh.testing.servers.recipe import WAYS, Way
from eventmesh.testing.servers.recipes import KINDS
from eventmesh.testing.servers.server import (
    ControlledServer,
    Server,
    ServerMissing,
    required,
    serve,
    serve_controlled,
    version_of,
)

__all__ = [
    "KINDS",
    "WAYS",
    "ControlledServer",
    "Server",
    "ServerMissing",
    "Way",
    "fresh_database",
    "required",
    "serve",
    "serve_controlled",
    "version_of",
]
