"""Servers as tests see them: where they come from, and how they are controlled."""

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
from eventmesh.testing.servers.keeper import ENDED_BY_US
from eventmesh.testing.servers.recipe import WAYS, Way, variable
from eventmesh.testing.servers.recipes import KINDS, recipe_of

REQUIRE_VARIABLE = "EVENTMESH_TEST_REQUIRE"


class ServerMissing(EventMeshError):
    """A server for tests was neither given nor could be started: give its URL, or start Docker,
    or install the server. `reasons` has one line for each way that was tried."""

    exit_code = 3

    def __init__(self, kind: str, reasons: Sequence[str]) -> None:
        self.kind = kind
        self.reasons = tuple(reasons)
        super().__init__(f"no {kind} for tests: {'; '.join(self.reasons)}")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `origin` is "environment", "container IMAGE" or "private BINARY";
    `version` is what it says of itself, None for one that was given and has not been asked."""

    kind: str
    url: str
    origin: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ControlledServer(Server):
    """A server of one's own, at the same URL with the same password through all of this. It runs
    at first. To stop or start it again when it is stopped or started changes nothing."""

    _keeper: _Keeper = field(kw_only=True, repr=False, compare=False)

    async def stop(self) -> None:
        """End it gracefully, as an operator does; returns once it has ended."""
        await self._order("stop")

    async def kill(self) -> None:
        """End it by SIGKILL; returns once it has ended. What it stored stays."""
        await self._order("kill")

    async def start(self) -> None:
        """Run it again, with what it stored; returns once it answers."""
        await self._order("start")

    async def lose_data(self) -> None:
        """Stop it, delete all that it stored, and run it again; returns once it answers."""
        await self._order("lose_data")

    async def _order(self, order: str) -> None:
        await asyncio.to_thread(self._keeper.order, order)


def required(kind: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether EVENTMESH_TEST_REQUIRE (a comma-separated list, or `all`) names this server, so that
    a test must fail without it rather than be skipped. UsageError when it names an unknown one."""
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
    kind: str, environment: Mapping[str, str] | None = None, *, way: Way | None = None
) -> Iterator[Server]:
    """A server of this kind (one of KINDS) while the context is open.

    `environment` is used instead of the process's own. With `way`, a server that is not given is
    had in this way only. ServerMissing when there is none.
    """
    environment = os.environ if environment is None else environment
    given = _given(kind, environment)
    if given is not None:
        yield given
        return
    with serve_controlled(kind, environment, way=way) as server:
        yield server


@contextmanager
def serve_controlled(
    kind: str, environment: Mapping[str, str] | None = None, *, way: Way | None = None
) -> Iterator[ControlledServer]:
    """A server that is nobody else's and can be stopped, killed and robbed of its data.

    One that the environment gives is not ours to do that with: it is passed over. The rest is as
    with `serve`.
    """
    recipe_of(kind)
    environment = os.environ if environment is None else environment
    with _Keeper.of(kind, environment, [way] if way else WAYS) as keeper:
        answer = keeper.answer()
        if "reasons" in answer:
            url_variable = variable(kind, "URL")
            unset = "is not set" if not environment.get(url_variable) else "is not ours to control"
            raise ServerMissing(kind, [f"environment: {url_variable} {unset}", *answer["reasons"]])
        yield ControlledServer(
            kind, answer["url"], answer["origin"], answer["version"], _keeper=keeper
        )


async def version_of(server: Server) -> str:
    """What the server says of itself, asking it if that is not known."""
    return server.version or await recipe_of(server.kind).greet(server.url)


def _given(kind: str, environment: Mapping[str, str]) -> Server | None:
    """The server that the environment gives, or None; UsageError for a URL of another kind."""
    schemes = recipe_of(kind).schemes
    url = environment.get(variable(kind, "URL"), "")
    if not url:
        return None
    if urlsplit(url).scheme not in schemes:
        raise UsageError(
            f"{variable(kind, 'URL')} begins with {urlsplit(url).scheme!r}; a URL of a {kind} for "
            f"tests begins with {' or '.join(f'{scheme}://' for scheme in schemes)}."
        )
    return Server(kind, url, "environment")


class _Keeper:
    """The process that holds a server for us."""

    def __init__(self, kind: str, process: subprocess.Popen[bytes]) -> None:
        self._kind = kind
        self._process = process
        self._asking = threading.Lock()  # so that an order that nobody awaits any more is answered

    @classmethod
    @contextmanager
    def of(cls, kind: str, environment: Mapping[str, str], ways: Sequence[Way]) -> Iterator[Self]:
        """A new keeper, which ends its server on leaving, or when this process is gone."""
        with subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [
                *(sys.executable, "-W", "ignore", "-m", "eventmesh.testing.servers.keeper"),
                *(kind, *ways),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is for the tests, which then leave this context
        ) as process:
            try:
                yield cls(kind, process)
            finally:
                # Not by the end of its input alone, which a forked child of ours may hold open.
                process.terminate()
        if process.returncode not in (0, ENDED_BY_US):
            raise _lost(kind, process.returncode)

    def order(self, order: str) -> None:
        """Have this done; EventMeshError when the keeper cannot."""
        with self._asking:
            with suppress(BrokenPipeError):  # then there is no answer either
                if self._process.stdin is not None:
                    self._process.stdin.write(order.encode() + b"\n")
                    self._process.stdin.flush()
            refused = self.answer()["refused"]
        if refused is not None:
            raise EventMeshError(f"The {self._kind} for tests cannot {order}: {refused}.")

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise _lost(self._kind, self._process.wait())
        answer: dict[str, Any] = json.loads(line)
        return answer


def _lost(kind: str, code: int) -> EventMeshError:
    return EventMeshError(
        f"The process that keeps a {kind} for tests ended with code {code}; its traceback is on "
        f"standard error. Look for what it left behind."
    )
