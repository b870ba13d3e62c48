"""A server that this process started and can stop, kill and restart."""

from __future__ import annotations

from abc import ABC, abstractmethod

from eventmesh.testing.servers.recipe import Recipe


class Instance(ABC):
    """A server whose URL never changes.

    Every operation is allowed at any time; stopping a stopped server does nothing. `version` is
    what the server reported at its last start.
    """

    version = ""

    def __init__(self, recipe: Recipe, origin: str) -> None:
        self.recipe = recipe
        self.origin = origin

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients."""

    @abstractmethod
    def start(self) -> None:
        """Start it; returns once it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it gracefully."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it with SIGKILL."""

    @abstractmethod
    def wipe(self) -> None:
        """Delete its data while it is stopped."""

    def lose_data(self) -> None:
        """Restart it without its data."""
        self.stop()
        self.wipe()
        self.start()
