"""`Event` and `Command`: a message is a frozen pydantic model with a name, a version and a key.

The identity is given as class keywords and checked when the class is made, so that a wrong
declaration fails at import and not in production.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from eventmesh.errors import UsageError

Kind = Literal["event", "command"]
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""A pure function from the data of version n to the data of version n + 1."""
Downcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""A pure function from the data of version n + 1 to the data of version n."""

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


@dataclass(frozen=True, slots=True)
class Identity:
    """What the mesh knows a message by."""

    kind: Kind
    name: str
    version: int
    key: str | None

    @property
    def owner(self) -> str:
        """The service that may change this message: the first segment of its name."""
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Message(BaseModel):
    """The base of `Event` and `Command`; declare one of those."""

    # Every field is written, so in the schema of what is written every field is required.
    model_config = ConfigDict(
        frozen=True, extra="ignore", json_schema_serialization_defaults_required=True
    )

    # Dunder names, so that no field of a user's message can collide with them.
    __kind__: ClassVar[Kind | None] = None
    __identity__: ClassVar[Identity]
    __upcasters__: ClassVar[dict[int, Upcaster]]
    __downcasters__: ClassVar[dict[int, Downcaster]]

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int | None = None,
        key: str | None = None,
        **config: Any,
    ) -> None:
        # Names the class keywords for type checkers; pydantic calls the hook below with them.
        super().__init_subclass__(**config)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int | None = None,
        key: str | None = None,
        **config: Any,
    ) -> None:
        super().__pydantic_init_subclass__(**config)
        if name is None and version is None and key is None:
            if hasattr(cls, "__identity__") and not cls.__pydantic_generic_metadata__["origin"]:
                raise UsageError(
                    f"{cls.__module__}.{cls.__qualname__} derives from {cls.__identity__} without "
                    f"a name of its own: write name=… and version=…, or share the fields in a "
                    f"base class without a name."
                )
            return  # a base class that only shares fields
        cls.__identity__ = _identify(cls, cls.__kind__, name, version, key)
        cls.__upcasters__, cls.__downcasters__ = {}, {}

    @classmethod
    def upcaster(cls, *, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Declare the function that turns data of `from_version` into that of the next version.

        It must be pure and must accept everything that version allowed. UsageError when the
        version is not an older one of this message, or has its upcaster already.
        """

        return _declare(cls, "upcaster", "from_version", from_version, cls.__upcasters__)

    @classmethod
    def downcaster(cls, *, to_version: int) -> Callable[[Downcaster], Downcaster]:
        """Declare the function that turns data of the version after `to_version` into data of that
        one, so that `service.publisher(…, version=…)` can serve those who read no other.

        It must be pure and must accept everything the newer version allows. UsageError as above.
        """
        return _declare(cls, "downcaster", "to_version", to_version, cls.__downcasters__)


class Event(Message):
    """A fact that happened. Its owner publishes it; anyone subscribes."""

    __kind__: ClassVar[Kind | None] = "event"


class Command(Message):
    """A request. Its owner handles it; anyone sends it."""

    __kind__: ClassVar[Kind | None] = "command"


def check_message(value: object) -> None:
    """UsageError for what cannot be published, being no instance of a message's class."""
    if isinstance(value, Message):
        return
    if isinstance(value, type) and issubclass(value, Message):
        raise UsageError(
            f"The class {value.__name__} was given where a message belongs: write "
            f"{value.__name__}(…)."
        )
    raise UsageError(
        f"{_with_article(type(value).__name__)} is not a message: make an instance of a class that "
        f"derives from Event or Command."
    )


def _with_article(noun: str) -> str:
    return f"{'An' if noun[:1].lower() in 'aeiou' else 'A'} {noun}"


def _declare(
    cls: type[Message], what: str, option: str, version: int, known: dict[int, Upcaster]
) -> Callable[[Upcaster], Upcaster]:
    """Add a function to those known by the older of the two versions between which it leads."""

    def declare(function: Upcaster) -> Upcaster:
        identity = identity_of(cls)
        if not 1 <= version < identity.version:
            raise UsageError(
                f"The {what} {getattr(function, '__name__', function)} of {identity} says "
                f"{option}={version}: it must be between 1 and {identity.version - 1}."
            )
        if version in known:
            raise UsageError(
                f"{identity} has two {what}s {option.partition('_')[0]} version {version}: "
                f"remove one."
            )
        known[version] = function
        return function

    return declare


def _identify(
    cls: type[Message], kind: Kind | None, name: str | None, version: int | None, key: str | None
) -> Identity:
    where = f"{cls.__module__}.{cls.__qualname__}"
    if kind is None:
        raise UsageError(f"{where} derives from Message: derive it from Event or Command.")
    if name is None or not _NAME.fullmatch(name):
        raise UsageError(
            f'{where} has the message name {name!r}: write name="<owner>.<what>" in lower case, '
            f'such as name="payments.payment_captured".'
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UsageError(
            f"{where} has the version {version!r}: write version=1 and count up from there."
        )
    if key is not None and key not in cls.model_fields:
        fields = ", ".join(cls.model_fields) or "none"
        raise UsageError(f"{where} has no field {key!r} to be its key; its fields are: {fields}.")
    return Identity(kind=kind, name=name, version=version, key=key)


def identity_of(message: type[Message]) -> Identity:
    """The identity of a message class; UsageError when it was declared without one."""
    identity: Identity | None = getattr(message, "__identity__", None)
    if identity is None:
        raise UsageError(
            f"{message.__module__}.{message.__qualname__} has no name: declare it as "
            f'class {message.__name__}(Event, name="<owner>.<what>", version=1).'
        )
    return identity


def key_of(message: Message) -> str | None:
    """The value of the message's key field as text: what orders it among others.

    None, and then any order will do, for a message without a key and for a value that is None or
    empty.
    """
    key = message.__identity__.key
    value = None if key is None else getattr(message, key)
    if isinstance(value, Enum):
        value = value.value
    return None if value is None else str(value) or None
