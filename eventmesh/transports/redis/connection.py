"""Connections to Redis below redis-py's client; here its errors become Unreachable.

The client library must never repeat a command: an XADD whose answer was lost may have been
executed. Our caller decides whether to repeat it, after Unreachable.

After each error that casts doubt on the server (a lost connection, READONLY, MOVED), the address of
the server that accepts writes is looked up again; see `address`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from eventmesh.errors import Unreachable
from eventmesh.redact import redact, redact_error
from eventmesh.tracing.place import Peer
from eventmesh.transports.redis.address import Address, Locator
from eventmesh.transports.redis.scripts.common import Command, call

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for the answers to a batch; well above the longest time that a read blocks."""

CLOSE_TIMEOUT = 1.0
"""Seconds to wait for sockets to close, which a server that is gone does not answer."""

MOST_CONNECTIONS = 16

_OURS = {
    "protocol": 2,  # the flat replies that this package reads, on every version of Redis
    "decode_responses": False,
    "retry": Retry(NoBackoff(), 0),  # see the module's docstring
    # ANSWER_TIMEOUT is for a batch; redis-py's would be for each answer, and its wait_for loses
    # cancellations on Python 3.11.
    "socket_timeout": None,
}

_ELSEWHERE = ("MOVED", "ASK", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED")
"""Errors of a server that does not accept writes to our keys, or no longer does."""

_ADVICE = {
    "LOADING": "Wait until it has",
    "MISCONF": "Make room on its disk",
    "NOAUTH": "Give user and password in EVENTMESH_BROKER_URL",
    "NOPERM": "Give its user the rights that EventMesh needs",
    "OOM": "Raise its maxmemory; consuming goes on, and makes room",
    "READONLY": "Name the master in EVENTMESH_BROKER_URL, or find it by redis+sentinel://",
    "WRONGTYPE": "Another program uses that key: rename or delete it, and EventMesh goes on",
    "WRONGPASS": "Correct user and password in EVENTMESH_BROKER_URL",
}


_PLACE_IN_SCRIPT = re.compile(r" script: [0-9a-f]{40}, on @user_script:[0-9]+\.?$")
"""The end of every error in a script, which helps only the script's author."""

_CLOSED_IN_UVLOOP = "the handler is closed"
"""uvloop raises a RuntimeError with this text when writing to a connection that was reset; with
asyncio's own loop, the next read fails instead."""


class ConnectionLost(Unreachable):
    """The connection broke, or could not be made. The command may have been executed."""


class CommandRejected(Unreachable):
    """Redis answered a command with an error, whose first word is `code`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: RedisError) -> str:
    """The first word of an error from Redis, such as NOGROUP."""
    # redis-py removes the code from the text of errors that it knows.
    code: str | None = getattr(error, "status_code", None)
    return code or str(error).partition(" ")[0]


class Redis:
    """A process's connections to one Redis: a pool for commands, and connections for blocking
    reads."""

    def __init__(self, url: str, options: dict[str, Any], locator: Locator) -> None:
        self._url = url
        self._shown_url = redact(url)
        self._options = options
        self._locator = locator
        self._locating = asyncio.Lock()
        self._address: Address | None = None
        self._doubted = True
        self._closed = False
        self._outside_pool: set[AbstractConnection] = set()
        self._leaving: set[asyncio.Future[None]] = set()
        self._sockets: set[asyncio.Future[None]] = set()
        """One for each socket, until it is closed: with TLS that takes an answer of the server, and
        redis-py does not wait for it after an error."""
        self._pool: Any = None  # redis-py leaves its methods without types
        self._newest: Any = None  # the connection that was used last, which may be closed

    def open(self) -> None:
        """Allow connections, which are made when a command needs one."""
        self._closed = False

    async def close(self) -> None:
        """Close every connection; commands that wait, and later ones, raise Unreachable."""
        self._closed = True
        for connection in list(self._outside_pool):
            await connection.disconnect(nowait=True)
        self._leave_pool()
        with suppress(Unreachable):  # closed is closed
            async with self.answering():
                await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._sockets:
            await asyncio.wait(self._sockets, timeout=CLOSE_TIMEOUT)

    @property
    def peer(self) -> Peer | None:
        """Where the connection that was used last goes to; None if it is not connected."""
        if self._newest is None or (address := self._newest.getpeername()) is None:
            return None
        return Peer(address, self._newest.port)

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        async with self._pooled() as connection:
            return await connection.ask(*command)

    async def run(self, script: str, keys: Sequence[str], *arguments: str | bytes | int) -> Any:
        """The answer to a script."""
        return await self.ask(*call(script, keys, *arguments))

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, sent in one pipeline; the first error is raised."""
        answers = await self.attempt(commands)
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, ResponseError):
                raise self.rejection(answer, command)
        return answers

    async def attempt(self, commands: Sequence[Command]) -> list[Any]:
        """As `batch`, but an error is returned as the answer to its command."""
        if not commands:
            return []
        async with self._pooled() as connection:
            return await connection.exchange(commands)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection outside the pool, for blocking reads; closed on leaving."""
        async with self.answering():
            connection = (await self._current_pool()).make_connection()
        self._outside_pool.add(connection)
        try:
            async with self.answering():
                await connection.connect()
            self.check_open()
            yield Connection(self, connection)
        finally:
            self._outside_pool.discard(connection)
            await connection.disconnect(nowait=True)

    @asynccontextmanager
    async def _pooled(self) -> AsyncIterator[Connection]:
        async with self.answering():
            pool = await self._current_pool()
            self._newest = connection = await pool.get_connection()
        try:
            yield Connection(self, connection)
        finally:
            await asyncio.shield(pool.release(connection))

    async def _current_pool(self) -> Any:
        """The pool of the server that accepts writes, which is located again when in doubt."""
        self.check_open()
        async with self._locating:
            if self._doubted or self._pool is None:
                self._doubted = False  # before, because a doubt that arises meanwhile counts
                try:
                    address = await self._locator.locate()
                except BaseException:
                    self._doubted = True
                    raise
                self.check_open()
                if address != self._address:
                    self._leave_pool()
                    self._pool, self._address = self._new_pool(address), address
        return self._pool

    def check_open(self) -> None:
        """Unreachable once closed. Called after every wait, because that may happen meanwhile."""
        if self._closed:
            raise Unreachable(f"The connection to Redis at {self._shown_url} has been closed.")

    def _leave_pool(self) -> None:
        """Close the pool's connections, including those that are still being made. Closing runs in
        the background, because the server may be gone."""
        pool, self._pool, self._address = self._pool, None, None
        if pool is not None:
            pool.left = True
            leaving = asyncio.ensure_future(pool.disconnect())
            leaving.add_done_callback(self._has_left)
            self._leaving.add(leaving)

    def _has_left(self, leaving: asyncio.Future[None]) -> None:
        self._leaving.discard(leaving)
        if not leaving.cancelled():
            leaving.exception()  # retrieved, because the connections are gone anyway

    def _new_pool(self, address: Address) -> _Pool:
        host, port = address
        settings: dict[str, Any] = {
            "max_connections": MOST_CONNECTIONS,
            "socket_connect_timeout": ANSWER_TIMEOUT,
            # Off, because the pool that listens for notifications no longer checks whether the
            # server has closed a connection before handing it out.
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            "redis_connect_func": self._greet,
            **self._options,
            **_OURS,
        }
        return _Pool(**settings, host=host, port=port)

    async def _greet(self, connection: Any) -> None:
        """Log in and so on, as a connection does by itself; called once it has its socket."""
        closed = asyncio.ensure_future(connection._writer.wait_closed())
        closed.add_done_callback(self._has_closed)
        self._sockets.add(closed)
        await connection.on_connect()

    def _has_closed(self, closed: asyncio.Future[None]) -> None:
        self._sockets.discard(closed)
        if not closed.cancelled():
            closed.exception()  # retrieved: it tells why the connection was lost

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Limit the body to ANSWER_TIMEOUT, and raise its errors as Unreachable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                yield
        except (ResponseError, AuthenticationError, BusyLoadingError) as error:
            raise self.rejection(error) from error
        except TimeoutError as error:
            self._doubted = True
            raise Unreachable(self._silence(f"it took longer than {ANSWER_TIMEOUT:g} s")) from error
        except InvalidResponse as error:
            self._doubted = True
            raise ConnectionLost(
                f"The server at {self._shown_url} is not Redis: it does not use its protocol. "
                f"Correct EVENTMESH_BROKER_URL."
            ) from error
        except (RedisError, OSError) as error:
            self._doubted = True
            raise ConnectionLost(self._silence(str(error))) from error
        except RuntimeError as error:
            if _CLOSED_IN_UVLOOP not in str(error):
                raise
            self._doubted = True
            raise ConnectionLost(self._silence("the connection was closed")) from error

    def _silence(self, why: str) -> str:
        shown = redact_error(why, self._url).rstrip(".")
        return (
            f"Redis at {self._shown_url} does not answer: {shown}. Start it, or correct "
            f"EVENTMESH_BROKER_URL."
        )

    def rejection(self, error: RedisError, command: Command = ()) -> CommandRejected:
        """Our error for an error that Redis answered."""
        code = code_of(error)
        if code in _ELSEWHERE:
            self._doubted = True
        said = _PLACE_IN_SCRIPT.sub("", redact_error(error, self._url)).rstrip(".")
        if code == "WRONGTYPE" and command and command[0] != "EVAL":  # our scripts name the key
            said = f"the key {command[1]!s} does not hold what EventMesh keeps there"
        shown = said if said.startswith(code) else f"{code} {said}"
        return CommandRejected(
            f"Redis at {self._shown_url} rejected a command: {shown}. "
            f"{_ADVICE.get(code, 'Its settings and its log tell more')}.",
            code,
        )


class _Pool(BlockingConnectionPool):
    """A pool that can be left while its connections are used or being made. redis-py's own would
    keep connections that are completed after it was disconnected."""

    left = False
    """Once set, a connection that is completed is closed at once."""

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        await super().ensure_connection(connection)
        if self.left:
            await connection.disconnect(nowait=True)
            raise ConnectionError("this pool is no longer used")


class Connection:
    """One connection, used in batches below redis-py's client, because the client's handling of
    single commands and answers costs half the throughput (measured: 43,000 XADD/s instead of
    107,000)."""

    def __init__(self, redis: Redis, connection: AbstractConnection) -> None:
        self._redis = redis
        self._connection = connection

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        [answer] = await self.exchange([command])
        if isinstance(answer, ResponseError):
            raise self._redis.rejection(answer, command)
        return answer

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, in one round trip; an error is returned as the answer."""
        answers: list[Any] = []
        self._redis.check_open()  # redis-py would reconnect
        async with self._redis.answering():
            try:
                await self._connection.send_packed_command(
                    # The stub expects tuples of one element.
                    b"".join(hiredis.pack_command(c) for c in commands)  # type: ignore[arg-type]
                )
                for _ in commands:
                    answers.append(await self._answer())
            except BaseException:
                # Answers that are still to come must not be read as answers to later commands.
                await self._connection.disconnect(nowait=True)
                raise
        return answers

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error
