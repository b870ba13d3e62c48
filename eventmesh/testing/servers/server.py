"""Servers as tests use them: `serve` finds or starts one, `ControlledServer` breaks it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from eventmesh.errors import EventMeshError, UsageError
from eventmesh.testing.servers.keeper import ENDED_BY_US, IN_MEMORY
from eventmesh.testing.servers.recipe import WAYS, Way, variable
from eventmesh.testing.servers.recipes import KINDS, recipe_of

REQUIRE_VARIABLE = "EVENTMESH_TEST_REQUIRE"


class ServerMissing(EventMeshError):
    """No server: set its URL, start Docker, or install the server.

    `reasons` has one line for each way that was tried.
    """

    exit_code = 3

    def __init__(self, kind: str, reasons: Sequence[str]) -> None:
        self.kind = kind
        self.reasons = tuple(reasons)
        super().__init__(f"no {kind} for tests: {'; '.join(self.reasons)}")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `origin` is "environment", "container IMAGE" or "private BINARY".
    `version` is what the server reports; None for one from the environment, which is not asked."""

    kind: str
    url: str
    origin: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ControlledServer(Server):
    """A server that no other test uses. It keeps its URL and password through every restart.
    Stopping a stopped server, or starting a running one, does nothing."""

    _keeper: _Keeper = field(kw_only=True, repr=False, compare=False)

    async def stop(self) -> None:
        """Stop it gracefully, as an operator does; returns once it has exited."""
        await self._command("stop")

    async def kill(self) -> None:
        """Kill it with SIGKILL; returns once it has exited. Its data stays."""
        await self._command("kill")

    async def start(self) -> None:
        """Start it again with its data; returns once it answers."""
        await self._command("start")

    async def lose_data(self) -> None:
        """Stop it, delete its data, and start it again; returns once it answers."""
        await self._command("lose_data")

    async def _command(self, command: str) -> None:
        await asyncio.to_thread(self._keeper.command, command)


def required(kind: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether EVENTMESH_TEST_REQUIRE (a comma-separated list, or `all`) names this server.

    A test without a required server fails instead of being skipped. UsageError for unknown names.
    """
    environment = os.environ if environment is None else environment
    named = {name.strip() for name in environment.get(REQUIRE_VARIABLE, "").split(",")} - {""}
    if unknown := named - {*KINDS, "all"}:
        raise UsageError(
            f"{REQUIRE_VARIABLE} names {', '.join(sorted(unknown))}; known are "
            f"{', '.join(KINDS)} and all."
        )
    return kind in named or "all" in named


@contextmanager
def serve(
    kind: str,
    environment: Mapping[str, str] | None = None,
    *,
    way: Way | None = None,
    in_memory: bool = False,
) -> Iterator[Server]:
    """A server of this kind (one of KINDS) while the context is open.

    `environment` replaces the process's own. With `way`, only this way of starting a server is
    tried. With `in_memory`, a server that is started stores its data in memory where the system has
    a file system for that: a test that makes databases or durable queues takes much less time.
    ServerMissing if there is no server.
    """
    environment = os.environ if environment is None else environment
    given = _given(kind, environment)
    if given is not None:
        yield given
        return
    with _started(kind, environment, way, in_memory=in_memory) as server:
        yield server


@contextmanager
def serve_controlled(
    kind: str, environment: Mapping[str, str] | None = None, *, way: Way | None = None
) -> Iterator[ControlledServer]:
    """A server of the caller's own, which can be stopped, killed and lose its data.

    A server from the environment is not used, because others may use it. Otherwise as `serve`.
    """
    environment = os.environ if environment is None else environment
    with _started(kind, environment, way) as server:
        yield server


@contextmanager
def _started(
    kind: str, environment: Mapping[str, str], way: Way | None, *, in_memory: bool = False
) -> Iterator[ControlledServer]:
    recipe_of(kind)
    ways = [way] if way else WAYS
    with _Keeper.of(kind, environment, ways, in_memory=in_memory) as keeper:
        answer = keeper.answer()
        if "reasons" in answer:
            url_variable = variable(kind, "URL")
            unset = "is not set" if not environment.get(url_variable) else "may be used by others"
            raise ServerMissing(kind, [f"environment: {url_variable} {unset}", *answer["reasons"]])
        yield ControlledServer(
            kind, answer["url"], answer["origin"], answer["version"], _keeper=keeper
        )


async def version_of(server: Server) -> str:
    """The version that the server reports; connects to it if it is not known."""
    return server.version or await recipe_of(server.kind).greet(server.url)


def _given(kind: str, environment: Mapping[str, str]) -> Server | None:
    """The server from the environment, if any; UsageError for a URL of another kind."""
    recipe = recipe_of(kind)
    url = environment.get(variable(kind, "URL"), "")
    if not url:
        return None
    if urlsplit(url).scheme not in recipe.schemes:
        raise UsageError(
            f"{variable(kind, 'URL')} begins with {urlsplit(url).scheme!r}; a URL of a {kind} for "
            f"tests begins with {' or '.join(f'{scheme}://' for scheme in recipe.schemes)}."
        )
    return Server(kind, recipe.completed(url), "environment")


class _Keeper:
    """The process that owns a server on our behalf."""

    def __init__(self, kind: str, process: subprocess.Popen[bytes]) -> None:
        self._kind = kind
        self._process = process
        # A cancelled caller leaves a thread behind that still waits for its answer.
        self._asking = threading.Lock()

    @classmethod
    @contextmanager
    def of(
        cls, kind: str, environment: Mapping[str, str], ways: Sequence[Way], *, in_memory: bool
    ) -> Iterator[Self]:
        """Start a keeper; it ends its server on leaving, or when this process is gone."""
        with subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [
                *(sys.executable, "-W", "ignore", "-m", "eventmesh.testing.servers.keeper"),
                *(kind, *ways, *([IN_MEMORY] if in_memory else [])),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # on Ctrl-C the tests leave this context, which ends the keeper
        ) as process:
            try:
                yield cls(kind, process)
            finally:
                # Closing its input is not enough: a forked child of ours may hold the pipe open.
                process.terminate()
        if process.returncode not in (0, ENDED_BY_US):
            raise _lost(kind, process.returncode)

    def command(self, command: str) -> None:
        """Run a command; EventMeshError if the keeper cannot."""
        with self._asking:
            with suppress(BrokenPipeError):  # `answer` reports that the keeper is gone
                if self._process.stdin is not None:
                    self._process.stdin.write(command.encode() + b"\n")
                    self._process.stdin.flush()
            refused = self.answer()["refused"]
        if refused is not None:
            raise EventMeshError(f"The {self._kind} for tests cannot {command}: {refused}.")

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise _lost(self._kind, self._process.wait())
        answer: dict[str, Any] = json.loads(line)
        return answer


def _lost(kind: str, code: int) -> EventMeshError:
    return EventMeshError(
        f"The process that owns a {kind} for tests exited with code {code}; its traceback is on "
        f"standard error. It may have left containers or processes behind."
    )
