"""A server that this process has started and can stop, kill and start again."""

from __future__ import annotations

from abc import ABC, abstractmethod

from eventmesh.testing.servers.recipe import Recipe


class Instance(ABC):
    """A server with one URL for its whole life.

    Each order may be given at any time: to stop what does not run changes nothing. `version` is
    what the server said of itself when it was started last.
    """

    version = ""

    def __init__(self, recipe: Recipe, origin: str) -> None:
        self.recipe = recipe
        self.origin = origin

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is reached."""

    @abstractmethod
    def start(self) -> None:
        """Run it; returns once it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End it gracefully."""

    @abstractmethod
    def kill(self) -> None:
        """End it by SIGKILL."""

    @abstractmethod
    def wipe(self) -> None:
        """Delete all that it stored, while it does not run."""

    def lose_data(self) -> None:
        """Stop it, and start it as new."""
        self.stop()
        self.wipe()
        self.start()
