"""A server in a container, by testcontainers."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from eventmesh.testing.servers.answering import (
    POLL_INTERVAL,
    START_TIMEOUT,
    EndedEarly,
    Unavailable,
    one_line,
    wait_for_version,
)
from eventmesh.testing.servers.instance import Instance
from eventmesh.testing.servers.processes import STOP_TIMEOUT, free_port
from eventmesh.testing.servers.recipe import Recipe, new_password, variable

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

ENGINE_TIMEOUT = 5.0
"""Seconds within which a container engine answers; otherwise it counts as missing."""

REGISTRY_TIMEOUT = 10.0
"""Seconds within which an image registry answers; the pull itself has no limit."""

START_ATTEMPTS = 3
"""Another process may take the free port before the engine binds it, so the start is retried."""


@contextmanager
def in_container(recipe: Recipe, *, in_memory: bool = False) -> Iterator[Instance]:
    """A server in a container, removed on leaving; Unavailable if it cannot be started. With
    `in_memory`, its data is lost whenever it is stopped."""
    try:
        from testcontainers.core.config import testcontainers_config
    except ImportError as error:
        raise Unavailable(f"testcontainers is not installed ({error})") from error
    # Global settings, but the keeper's process uses testcontainers for nothing else.
    testcontainers_config.ryuk_disabled = True
    testcontainers_config.sleep_time = POLL_INTERVAL
    testcontainers_config.max_tries = round(START_TIMEOUT / POLL_INTERVAL)

    image = os.environ.get(variable(recipe.kind, "IMAGE")) or recipe.image
    if not image:
        raise Unavailable(f"{variable(recipe.kind, 'IMAGE')} is not set, and there is no default")
    with _errors_translated():
        volumes = _fetch(testcontainers_config.hub_image_name_prefix + image)
    in_memory_only = {*volumes, *recipe.folders} if in_memory else set()
    instance = _ContainerInstance(recipe, image, in_memory_only)
    with ExitStack() as stack:
        stack.callback(instance.wipe)
        instance.create()
        yield instance


class _PortTaken(Unavailable):
    """Another process listens on the port chosen for the container."""


class _ContainerInstance(Instance):
    def __init__(self, recipe: Recipe, image: str, in_memory: Collection[str]) -> None:
        """The container has the folders `in_memory` on a file system in memory."""
        super().__init__(recipe, f"container {image}")
        self._image = image
        self._in_memory = in_memory
        self._password = new_password()
        # Chosen here, because the engine would choose another one at each start.
        self._port = free_port()
        self._container: DockerContainer | None = None
        self._url = ""

    @property
    def url(self) -> str:
        return self._url

    def create(self) -> None:
        """Create and start the container."""
        for _ in range(START_ATTEMPTS - 1):
            with suppress(_PortTaken):
                self.start()
                return
            self._port = free_port()
        self.start()

    def start(self) -> None:
        with _errors_translated():
            if self._container is None:
                container = self.recipe.container(self._image, self._password)
                container.with_bind_ports(self.recipe.port, self._port)
                container.with_kwargs(labels={"eventmesh.testing": self.recipe.kind})
                for folder in self._in_memory:
                    container.with_tmpfs_mount(folder, "mode=1777")  # whichever user writes
                self._container = container.__enter__()  # removes it if the start fails
            else:
                self._container.get_wrapped_container().start()
            self._url = self._found_url(self._container)
        self.version = wait_for_version(lambda: self.recipe.greet(self.url), self._check)

    def stop(self) -> None:
        with _errors_translated():
            if self._container is not None and self._status() == "running":
                wrapped = self._container.get_wrapped_container()
                if self.recipe.stopping:
                    wrapped.exec_run(list(self.recipe.stopping))
                wrapped.stop(timeout=round(STOP_TIMEOUT))

    def kill(self) -> None:
        with _errors_translated():
            if self._container is not None and self._status() == "running":
                wrapped = self._container.get_wrapped_container()
                wrapped.kill()
                wrapped.wait(timeout=STOP_TIMEOUT)

    def wipe(self) -> None:
        """Remove the container with its volumes; `start` creates another one."""
        with _errors_translated():
            container, self._container = self._container, None
            if container is not None:
                container.__exit__(None, None, None)

    def _found_url(self, container: DockerContainer) -> str:
        host, port = container.get_container_host_ip(), container.get_exposed_port(self.recipe.port)
        url = self.recipe.url(f"{host}:{port}", self._password)
        if self._url not in ("", url):  # containers may have addresses of their own
            raise Unavailable(f"its address has changed to {host}:{port}")
        return url

    def _status(self) -> str:
        if self._container is None:
            return "removed"
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        return str(wrapped.status)

    def _check(self) -> None:
        """Raise EndedEarly if the container has exited."""
        with _errors_translated():
            if self._container is not None and self._status() == "exited":
                said = self._container.get_wrapped_container().logs(tail=5).decode(errors="replace")
                raise EndedEarly(f"it exited; its last lines: {one_line(said)}")


@contextmanager
def _errors_translated() -> Iterator[None]:
    """Turn the errors of testcontainers and the libraries below it into Unavailable."""
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]
        from redis.exceptions import RedisError
        from urllib3.exceptions import HTTPError
    except ImportError as error:
        raise Unavailable(f"testcontainers is not installed ({error})") from error

    try:
        yield
    # requests' errors are OSErrors.
    except (DockerException, HTTPError, RedisError, OSError, RuntimeError, ImportError) as error:
        told = one_line(error)
        taken = "port is already allocated" in told or "address already in use" in told
        raise (_PortTaken if taken else Unavailable)(told) from error


def _fetch(image: str) -> list[str]:
    """Check that the engine answers and has the image, or pull it; fail fast. Returns the folders
    that the image declares as volumes."""
    from docker.errors import ImageNotFound, NotFound
    from testcontainers.core.docker_client import DockerClient

    with ExitStack() as stack:
        engine = DockerClient(timeout=ENGINE_TIMEOUT).client
        stack.callback(engine.close)
        try:
            return _volumes(engine.images.get(image))
        except ImageNotFound:
            puller = DockerClient(timeout=REGISTRY_TIMEOUT).client
            stack.callback(puller.close)
        # A pull has no time limit, so query the registry first. Podman does not support the query
        # and answers "not found"; so does a registry without the image, where the pull fails fast.
        with suppress(NotFound):
            puller.images.get_registry_data(image)
        return _volumes(puller.images.pull(image))


def _volumes(image: Any) -> list[str]:
    return list(image.attrs["Config"].get("Volumes") or ())
