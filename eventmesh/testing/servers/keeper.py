"""The process that holds a container or a private server for a test process.

    python -m eventmesh.testing.servers.keeper KIND [WAY]

It answers each line of its standard input by one JSON object on a line of its standard output, the
start of the server being the first to be answered. It ends the server and itself at the end of its
input, and by SIGTERM.
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
"""The exit code of a keeper that was told to end by SIGTERM."""

_OPENERS: Mapping[Way, Callable[[Recipe], AbstractContextManager[Instance]]] = MappingProxyType(
    {"container": in_container, "private": private}
)

_ORDERS: Mapping[str, Callable[[Instance], None]] = MappingProxyType(
    {name: methodcaller(name) for name in ("stop", "kill", "start", "lose_data")}
)


class _NoWay(Exception):
    """No way gives a server, for these reasons."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(reasons))


def keep(recipe: Recipe, ways: Sequence[Way], orders: IO[bytes], answers: IO[bytes]) -> None:
    """Start a server, say where it is or why there is none, and do with it what is ordered."""
    try:
        with _started(recipe, ways) as instance:
            _say(answers, url=instance.url, origin=instance.origin, version=instance.version)
            for line in orders:
                _say(answers, refused=_obey(instance, line.decode().strip()))
    except _NoWay as missing:
        _say(answers, reasons=missing.reasons)


def _obey(instance: Instance, order: str) -> str | None:
    """Why the order could not be done; None when it is done."""
    try:
        _ORDERS[order](instance)
    except Unavailable as reason:
        return str(reason)
    return None


def _say(stream: IO[bytes], **answer: object) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


@contextmanager
def _started(recipe: Recipe, ways: Sequence[Way]) -> Iterator[Instance]:
    """A server from the first way that works; _NoWay when none does."""
    reasons: list[str] = []
    for way in ways:
        with ExitStack() as stack:
            try:
                instance = stack.enter_context(_OPENERS[way](recipe))
            except Unavailable as reason:
                reasons.append(f"{way}: {reason}")
                continue
            yield instance
            return
    raise _NoWay(reasons)


def _leave(signal_number: int, frame: object) -> None:
    """End this process by way of every open context; being asked once more changes nothing."""
    signal.signal(signal_number, signal.SIG_IGN)
    raise SystemExit(ENDED_BY_US)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    logging.disable()  # clients log each failed attempt, and to attempt until it works is our work
    _, _kind, *_ways = sys.argv
    keep(
        recipe_of(_kind),
        [way for way in WAYS if way in _ways] or WAYS,
        sys.stdin.buffer,
        sys.stdout.buffer,
    )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which is no news to a keeper that is done
