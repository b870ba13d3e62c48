"""The third way: a private server of a binary that is on this machine."""

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

RESTART_PATIENCE = 10.0
"""Seconds within which what a killed server has left behind is gone."""

START_ATTEMPTS = 3
"""Between finding a free port and a server's taking it, somebody else may take it: try again."""


@contextmanager
def private(recipe: Recipe) -> Iterator[Instance]:
    """A server in a temporary folder, ended on leaving; Unavailable when it cannot be."""
    binaries = tuple(find_binary(name, recipe.places) for name in recipe.binaries)
    account = unprivileged_account() if recipe.unprivileged else None
    reason = ""
    for _ in range(START_ATTEMPTS):
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder(recipe.kind, account))
            instance = _PrivateInstance(recipe, Place(folder, binaries, account))
            stack.callback(instance.stop)
            try:
                instance.begin()
            except EndedEarly as error:
                reason = str(error)
                continue
            yield instance
            return
    raise Unavailable(f"{binaries[0]} ended {START_ATTEMPTS} times before it answered: {reason}")


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
        """Run it; EndedEarly when it ends before it answers."""
        with ExitStack() as starting:
            self._running = starting.enter_context(self._server.run())
            self.version = wait_for_version(
                lambda: self.recipe.greet(self.url), *(each.check for each in self._running)
            )
            self._leaving = starting.pop_all()

    def start(self) -> None:
        """As Instance says. A server that was killed may leave children that hold what its
        successor needs, until they notice: then the successor ends at once, and is run again."""
        if self._running:
            return
        deadline = time.monotonic() + RESTART_PATIENCE
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
