"""Connections to Redis below redis-py's client, and the one place where its errors become ours.

What was sent to Redis is never sent again by the client library: an XADD whose answer got lost may
have been done. Whoever sees Unreachable decides, and knows that it may be a second time.
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
from eventmesh.transports.redis.address import Address, Locator
from eventmesh.transports.redis.scripts import Command, call

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for Redis to answer a batch. Well above the longest that a read blocks."""

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
"""How a server answers that does not, or no longer, take writes for our keys."""

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
"""What Redis says of every error in a script, and only its author can use."""

_CLOSED_IN_UVLOOP = "the handler is closed"
"""What uvloop says, in a RuntimeError, of writing to a connection that was reset; asyncio's own
loop lets the next read fail instead."""


class ConnectionLost(Unreachable):
    """The connection broke, or there was none. What was asked may have been done."""


class Refused(Unreachable):
    """Redis answered, and does not do what was asked. `code` is the first word of its answer."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: RedisError) -> str:
    """The first word of an error that Redis answered, such as NOGROUP."""
    # redis-py cuts off the code of those errors that it knows.
    code: str | None = getattr(error, "status_code", None)
    return code or str(error).partition(" ")[0]


class Redis:
    """The connections of a process."""

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
        self._pool: Any = None  # redis-py leaves its methods without types

    def open(self) -> None:
        """Connect from now on, whenever there is something to ask."""
        self._closed = False

    async def close(self) -> None:
        """End every connection: what waits, and what is asked from now on, is Unreachable."""
        self._closed = True
        for connection in list(self._outside_pool):
            await connection.disconnect(nowait=True)
        self._leave_pool()
        with suppress(Unreachable):  # closed is closed
            async with self.answering():
                await asyncio.gather(*self._leaving, return_exceptions=True)

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        async with self._pooled() as connection:
            return await connection.ask(*command)

    async def run(self, script: str, keys: Sequence[str], *arguments: str | bytes | int) -> Any:
        """What a script returns."""
        return await self.ask(*call(script, keys, *arguments))

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, sent at once and done one by one."""
        answers = await self.attempt(commands)
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, ResponseError):
                raise self.refusal(answer, command)
        return answers

    async def attempt(self, commands: Sequence[Command]) -> list[Any]:
        """As `batch`, but a command that was refused has its error as answer."""
        if not commands:
            return []
        async with self._pooled() as connection:
            return await connection.exchange(commands)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection outside the pool, for reads that block; cut on leaving."""
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
            connection = await pool.get_connection()
        try:
            yield Connection(self, connection)
        finally:
            await asyncio.shield(pool.release(connection))

    async def _current_pool(self) -> Any:
        """The connections to the server that takes writes, asked for anew once it is in doubt."""
        self.check_open()
        async with self._locating:
            if self._doubted or self._pool is None:
                address = await self._locator.locate()
                self.check_open()
                if address != self._address:
                    self._leave_pool()
                    self._pool, self._address = self._new_pool(address), address
                self._doubted = False
        return self._pool

    def check_open(self) -> None:
        """Unreachable once it is closed. Asked again after every wait: it may be, meanwhile."""
        if self._closed:
            raise Unreachable(f"The connection to Redis at {self._shown_url} has been closed.")

    def _leave_pool(self) -> None:
        """Cut its connections, those still being made as soon as they are open. Nobody waits for a
        server that may be gone to take its leave."""
        pool, self._pool, self._address = self._pool, None, None
        if pool is not None:
            pool.left = True
            leaving = asyncio.ensure_future(pool.disconnect())
            leaving.add_done_callback(self._has_left)
            self._leaving.add(leaving)

    def _has_left(self, leaving: asyncio.Future[None]) -> None:
        self._leaving.discard(leaving)
        if not leaving.cancelled():
            leaving.exception()  # of connections that are gone anyway

    def _new_pool(self, address: Address) -> _Pool:
        host, port = address
        settings: dict[str, Any] = {
            "max_connections": MOST_CONNECTIONS,
            "socket_connect_timeout": ANSWER_TIMEOUT,
            # Off, because the pool that listens for notifications no longer checks whether the
            # server has closed a connection before handing it out.
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            **self._options,
            **_OURS,
        }
        return _Pool(**settings, host=host, port=port)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """What is inside takes no longer than ANSWER_TIMEOUT, and fails as Unreachable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                yield
        except (ResponseError, AuthenticationError, BusyLoadingError) as error:
            raise self.refusal(error) from error
        except TimeoutError as error:
            self._doubted = True
            raise Unreachable(self._silence(f"it took over {ANSWER_TIMEOUT:g} s")) from error
        except InvalidResponse as error:
            self._doubted = True
            raise ConnectionLost(
                f"What answers at {self._shown_url} is not Redis: it does not use its protocol. "
                f"Correct EVENTMESH_BROKER_URL."
            ) from error
        except (RedisError, OSError) as error:
            self._doubted = True
            raise ConnectionLost(self._silence(str(error))) from error
        except RuntimeError as error:
            if _CLOSED_IN_UVLOOP not in str(error):
                raise
            self._doubted = True
            raise ConnectionLost(self._silence("the connection was cut")) from error

    def _silence(self, why: str) -> str:
        shown = redact_error(why, self._url).rstrip(".")
        return (
            f"Redis at {self._shown_url} does not answer: {shown}. Start it, or correct "
            f"EVENTMESH_BROKER_URL."
        )

    def refusal(self, error: RedisError, command: Command = ()) -> Refused:
        """The error for a Redis that answers, and does not do what is asked."""
        code = code_of(error)
        if code in _ELSEWHERE:
            self._doubted = True
        said = _PLACE_IN_SCRIPT.sub("", redact_error(error, self._url)).rstrip(".")
        if code == "WRONGTYPE" and command and command[0] != "EVAL":  # our scripts name the key
            said = f"the key {command[1]!s} does not hold what EventMesh keeps there"
        shown = said if said.startswith(code) else f"{code} {said}"
        return Refused(
            f"Redis at {self._shown_url} refuses: {shown}. "
            f"{_ADVICE.get(code, 'Its settings and its log tell more')}.",
            code,
        )


class _Pool(BlockingConnectionPool):
    """One that can be left while its connections are used, or are being made. The library's own
    would keep what is made after it was disconnected."""

    left = False
    """Once it is, no connection that is being made comes to be used."""

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        await super().ensure_connection(connection)
        if self.left:
            await connection.disconnect(nowait=True)
            raise ConnectionError("it is no longer used")


class Connection:
    """One connection, spoken to in batches below redis-py's client, whose packing of commands and
    handling of every single answer take half the throughput (measured: 43,000 XADD/s to 107,000).
    """

    def __init__(self, redis: Redis, connection: AbstractConnection) -> None:
        self._redis = redis
        self._connection = connection

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        [answer] = await self.exchange([command])
        if isinstance(answer, ResponseError):
            raise self._redis.refusal(answer, command)
        return answer

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, in one round trip; an error is returned as the answer."""
        answers: list[Any] = []
        self._redis.check_open()  # redis-py would connect anew
        async with self._redis.answering():
            try:
                await self._connection.send_packed_command(
                    # The stub says: tuples of one.
                    b"".join(hiredis.pack_command(c) for c in commands)  # type: ignore[arg-type]
                )
                for _ in commands:
                    answers.append(await self._answer())
            except BaseException:
                # What is still to come must not be taken for the answer to the next command.
                await self._connection.disconnect(nowait=True)
                raise
        return answers

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error
