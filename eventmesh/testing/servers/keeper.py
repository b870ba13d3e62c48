"""The process that owns a container or a private server on behalf of a test process.

    python -m eventmesh.testing.servers.keeper KIND [WAY] [--in-memory]

It first writes a line of JSON that says where the server is, or why there is none. Then it answers
each command on its standard input (stop, kill, start, lose_data) with another line. At the end of
its input, or on SIGTERM, it ends the server and exits.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from operator import methodcaller
from types import MappingProxyType
from typing import IO

from eventmesh.testing.servers.answering import Unavailable
from eventmesh.testing.servers.container import in_container
from eventmesh.testing.servers.instance import Instance
from eventmesh.testing.servers.private import private
from eventmesh.testing.servers.recipe import WAYS, Recipe, Way
from eventmesh.testing.servers.recipes import recipe_of

ENDED_BY_US = 128 + signal.SIGTERM
"""The exit code of a keeper after SIGTERM."""

IN_MEMORY = "--in-memory"

_OPENERS: Mapping[Way, Callable[..., AbstractContextManager[Instance]]] = MappingProxyType(
    {"container": in_container, "private": private}
)

_COMMANDS: Mapping[str, Callable[[Instance], None]] = MappingProxyType(
    {name: methodcaller(name) for name in ("stop", "kill", "start", "lose_data")}
)


class _NoServer(Exception):
    """Every way has failed, for these reasons."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(reasons))


def keep(
    recipe: Recipe,
    ways: Sequence[Way],
    commands: IO[bytes],
    answers: IO[bytes],
    *,
    in_memory: bool = False,
) -> None:
    """Start a server, report it, and run the commands until there are no more."""
    try:
        with _started(recipe, ways, in_memory=in_memory) as instance:
            _answer(answers, url=instance.url, origin=instance.origin, version=instance.version)
            for line in commands:
                _answer(answers, refused=_run(instance, line.decode().strip()))
    except _NoServer as missing:
        _answer(answers, reasons=missing.reasons)


def _run(instance: Instance, command: str) -> str | None:
    """Run a command; returns why it failed, or None."""
    try:
        _COMMANDS[command](instance)
    except Unavailable as reason:
        return str(reason)
    return None


def _answer(stream: IO[bytes], **answer: object) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


@contextmanager
def _started(recipe: Recipe, ways: Sequence[Way], *, in_memory: bool) -> Iterator[Instance]:
    """A server from the first way that works; _NoServer if none does."""
    reasons: list[str] = []
    for way in ways:
        with ExitStack() as stack:
            try:
                instance = stack.enter_context(_OPENERS[way](recipe, in_memory=in_memory))
            except Unavailable as reason:
                reasons.append(f"{way}: {reason}")
                continue
            yield instance
            return
    raise _NoServer(reasons)


def _exit(signal_number: int, frame: object) -> None:
    """Exit through every open context; a second signal does nothing."""
    signal.signal(signal_number, signal.SIG_IGN)
    raise SystemExit(ENDED_BY_US)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _exit)
    logging.disable()  # clients would log every attempt until the server answers
    _, _kind, *_ways = sys.argv
    keep(
        recipe_of(_kind),
        [way for way in WAYS if way in _ways] or WAYS,
        sys.stdin.buffer,
        sys.stdout.buffer,
        in_memory=IN_MEMORY in _ways,
    )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is exiting already
