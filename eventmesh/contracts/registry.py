"""The messages of one service: the model for each name, and which of them it publishes.

There is no global registry: two services in one process may have different models of one message.
"""

from __future__ import annotations

from collections.abc import Iterator

from eventmesh.contracts.message import Message, identity_of
from eventmesh.contracts.secret_fields import secret_fields
from eventmesh.contracts.versions import check_writable
from eventmesh.errors import UsageError


class Registry:
    """The messages that one service publishes, sends or handles."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._models: dict[str, type[Message]] = {}
        self._published: set[str] = set()
        self._written: dict[str, int] = {}

    def add(self, model: type[Message]) -> None:
        """Add a model; UsageError if there is another model with the same name."""
        identity = identity_of(model)
        known = self._models.setdefault(identity.name, model)
        if known is not model:
            raise UsageError(
                f"Service {self._service!r} has two models of {identity.name}: "
                f"{known.__module__}.{known.__qualname__} and "
                f"{model.__module__}.{model.__qualname__}. Keep one."
            )

    def add_published(self, model: type[Message], *, version: int | None = None) -> None:
        """Add a model that the service publishes, as an older version if one is given.

        UsageError for an event of another service, a version to which it cannot be downcast, or a
        secret field, whose value no reader would get.
        """
        identity = identity_of(model)
        if identity.kind == "event" and identity.owner != self._service:
            raise UsageError(
                f"Service {self._service!r} cannot publish {identity.name}: that event belongs to "
                f"service {identity.owner!r}, and only its owner publishes an event. Publish an "
                f"event named {self._service}.…, or send {identity.owner!r} a command."
            )
        for field in secret_fields(model):
            raise UsageError(
                f"Service {self._service!r} cannot publish {identity.name}: pydantic writes its "
                f"secret field {field} as asterisks. Keep the secret elsewhere, and its name in "
                f"the message, or write a field_serializer for it."
            )
        self.add(model)
        self._published.add(identity.name)
        if version is not None:
            check_writable(model, version)
            if self._written.setdefault(identity.name, version) != version:
                raise UsageError(
                    f"Service {self._service!r} publishes {identity.name} as version "
                    f"{self._written[identity.name]} and as version {version}: choose one."
                )

    def publishes(self, model: type[Message]) -> bool:
        """Whether the service declared that it publishes this model."""
        identity = getattr(model, "__identity__", None)
        return (
            identity is not None
            and identity.name in self._published
            and self._models[identity.name] is model
        )

    def written(self, model: type[Message]) -> int:
        """The version in which the service publishes this model."""
        identity = identity_of(model)
        return self._written.get(identity.name, identity.version)

    def published(self) -> Iterator[type[Message]]:
        """The models that the service declared to publish, sorted by name, without internal
        ones."""
        for name in sorted(self._published):
            if not self._models[name].__is_internal__:
                yield self._models[name]

    def published_names(self) -> frozenset[str]:
        """The names of the messages that the service declared to publish."""
        return frozenset(self._published)

    def get(self, name: str) -> type[Message] | None:
        """The model with this message name, if there is one."""
        return self._models.get(name)

    def owned(self) -> Iterator[type[Message]]:
        """The models that the service owns, whose schemas it freezes, sorted by name."""
        for name in sorted(self._models):
            model = self._models[name]
            if model.__identity__.owner == self._service and not model.__is_internal__:
                yield model
