"""Servers for tests: given by the environment, else in a container, else private to this run.

    with serve("postgres") as server:
        async with fresh_database(server) as url:
            ...

    with serve_controlled("rabbitmq") as server:
        await server.kill()
        await server.start()

A server comes from, in this order:

1. its URL in the environment: EVENTMESH_TEST_REDIS_URL, EVENTMESH_TEST_RABBITMQ_URL,
   EVENTMESH_TEST_POSTGRES_URL, EVENTMESH_TEST_MARIADB_URL, EVENTMESH_TEST_PGBOUNCER_URL. It is used
   as it is, and never started or stopped;
2. Docker, by testcontainers (`pip install 'testcontainers[postgres,rabbitmq,redis]'`); the image is
   EVENTMESH_TEST_REDIS_IMAGE and so on, and is pulled when it is not there;
3. a server binary found on this machine, run on a free port of 127.0.0.1 in a temporary folder.

Else `ServerMissing` tells why each of them failed. No other server is ever talked to: what is
started here has a random password, and counts as started only once it took that password.

Containers and private servers are held by a process of their own, the keeper, which ends them when
it is told to, on leaving `serve`, and when its standard input ends, because the test process was
killed without a word. So Ryuk, the container by which testcontainers would do the latter, is not
used: its image is one more that may be missing. Only a keeper that is itself killed by SIGKILL
leaves something behind: containers with the label `eventmesh.testing`, or processes in temporary
folders named `eventmesh-redis-*` and so on.

What is particular to a kind of server is in one module each: `redis_server`, `rabbitmq_server`,
`postgres_server`, `mariadb_server`, `pgbouncer_server`.
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
