"""A private server, run from a binary of this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from eventmesh.testing.servers.answering import (
    POLL_INTERVAL,
    EndedEarly,
    Unavailable,
    wait_for_version,
)
from eventmesh.testing.servers.instance import Instance
from eventmesh.testing.servers.processes import (
    Running,
    find_binary,
    temporary_folder,
    unprivileged_account,
)
from eventmesh.testing.servers.recipe import Place, Recipe

RESTART_TIMEOUT = 60.0
"""Seconds within which the child processes of a killed server exit."""

START_ATTEMPTS = 3
"""Another process may take the free port before the server binds it, so the start is retried."""


@contextmanager
def private(recipe: Recipe, *, in_memory: bool = False) -> Iterator[Instance]:
    """A server in a temporary folder, stopped on leaving; Unavailable if it cannot be started."""
    binaries = tuple(find_binary(name, recipe.places) for name in recipe.binaries)
    account = unprivileged_account() if recipe.unprivileged else None
    reason = ""
    for _ in range(START_ATTEMPTS):
        with ExitStack() as stack:
            folder = stack.enter_context(
                temporary_folder(recipe.kind, account, in_memory=in_memory)
            )
            instance = _PrivateInstance(recipe, Place(folder, binaries, account))
            stack.callback(instance.stop)
            try:
                instance.begin()
            except EndedEarly as error:
                reason = str(error)
                continue
            yield instance
            return
    raise Unavailable(f"{binaries[0]} exited {START_ATTEMPTS} times before it answered: {reason}")


class _PrivateInstance(Instance):
    def __init__(self, recipe: Recipe, place: Place) -> None:
        super().__init__(recipe, f"private {place.binaries[0]}")
        self._place = place
        self._server = recipe.private(place)
        self._server.initialise()
        self._running: tuple[Running, ...] = ()
        self._leaving = ExitStack()

    @property
    def url(self) -> str:
        return self._server.url

    def begin(self) -> None:
        """Start it; EndedEarly if it exits before it answers."""
        with ExitStack() as starting:
            self._running = starting.enter_context(self._server.run())
            self.version = wait_for_version(
                lambda: self.recipe.greet(self.url), *(each.check for each in self._running)
            )
            self._leaving = starting.pop_all()

    def start(self) -> None:
        """Start it, retrying for RESTART_TIMEOUT: children of a killed server may still hold its
        port or files for a moment, and then the new server exits at once."""
        if self._running:
            return
        deadline = time.monotonic() + RESTART_TIMEOUT
        while True:
            try:
                self.begin()
                return
            except EndedEarly:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_INTERVAL)

    def stop(self) -> None:
        self._running = ()
        self._leaving.close()

    def kill(self) -> None:
        for each in self._running:
            each.kill()
        self.stop()

    def wipe(self) -> None:
        shutil.rmtree(self._place.data, ignore_errors=True)
        self._server.initialise()
