"""`Event` and `Command`: a message is a frozen pydantic model with a name, a version and a key.

    class PaymentCaptured(Event, name="payments.payment_captured", version=1, key="order_id"):
        order_id: UUID

The first segment of the name is the service that owns the message. Messages with the same value of
the key field are handled in order. All of it is checked when the class is created, so that a wrong
declaration fails at import and not in production.
"""

from __future__ import annotations

import inspect
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

MOST_CHARACTERS_OF_NAME = 200
LARGEST_VERSION = 999_999_999
"""With both, the name and the version of a message fit into the attributes of its envelope."""

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


@dataclass(frozen=True, slots=True)
class Identity:
    """The name, version and key of a message, by which services refer to it."""

    kind: Kind
    name: str
    version: int
    key: str | None

    @property
    def owner(self) -> str:
        """The service that owns the message: the first segment of its name."""
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Message(BaseModel):
    """The base of `Event` and `Command`. Derive messages from one of these."""

    # Every field is sent, so every field is required in the schema of what is sent.
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_serialization_defaults_required=True,
        # JSON has neither: they would be written as null, which no subscriber reads as a number.
        # Models inside a message have their own configuration: see `non_finite`.
        allow_inf_nan=False,
    )

    # Dunder names cannot collide with the fields of a user's message.
    __kind__: ClassVar[Kind | None] = None
    __identity__: ClassVar[Identity]
    __upcasters__: ClassVar[dict[int, Upcaster]]
    __downcasters__: ClassVar[dict[int, Downcaster]]
    __is_internal__: ClassVar[bool] = False
    """Whether it is EventMesh's own: no service declares it, and its schema is not frozen."""

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int | None = None,
        key: str | None = None,
        **config: Any,
    ) -> None:
        # Declares the class keywords for type checkers; pydantic passes them to the hook below.
        try:
            super().__init_subclass__(**config)
        except TypeError:
            if not config:
                raise
            raise UsageError(
                f"{cls.__module__}.{cls.__qualname__} has {'=, '.join(config)}=, which a message "
                f"does not take: write name=, version= and key=."
            ) from None

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
                    f"{cls.__module__}.{cls.__qualname__} derives from {cls.__identity__} and has "
                    f"no name of its own: write name=… and version=…, or move the shared fields to "
                    f"a base class without a name."
                )
            return  # a base class that only shares fields
        cls.__identity__ = _identify(cls, cls.__kind__, name, version, key)
        cls.__upcasters__, cls.__downcasters__ = {}, {}

    @classmethod
    def upcaster(cls, *, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Decorate the function that converts data of `from_version` to the next version.

        It must be pure, and accept everything that its version allowed. UsageError if the version
        is not an older one of this message, or has an upcaster already.
        """
        return _declare(cls, "upcaster", "from_version", from_version)

    @classmethod
    def downcaster(cls, *, to_version: int) -> Callable[[Downcaster], Downcaster]:
        """Decorate the function that converts data of the version after `to_version` to that one.

        With it, `service.publisher(…, version=…)` can publish the older version for subscribers
        that cannot read the newer one yet. It must be pure, and accept everything that the newer
        version allows. UsageError as for `upcaster`.
        """
        return _declare(cls, "downcaster", "to_version", to_version)


class Event(Message):
    """A fact that happened. Its owner publishes it; anyone subscribes."""

    __kind__: ClassVar[Kind | None] = "event"


class Command(Message):
    """A request. Its owner handles it; anyone sends it."""

    __kind__: ClassVar[Kind | None] = "command"


def check_message(value: object) -> None:
    """UsageError unless the value is an instance of a message class."""
    if isinstance(value, Message):
        return
    if isinstance(value, type) and issubclass(value, Message):
        raise UsageError(
            f"The class {value.__name__} was passed instead of an instance of it: write "
            f"{value.__name__}(…)."
        )
    raise UsageError(
        f"{_with_article(type(value).__name__)} is not a message: pass an instance of a class that "
        f"derives from Event or Command."
    )


def _with_article(noun: str) -> str:
    return f"{'An' if noun[:1].lower() in 'aeiou' else 'A'} {noun}"


def why_not_older(version: int, of: Literal["message", "saga"]) -> str:
    """The rest of a sentence about a number that names no version older than this one."""
    if version > 1:
        return f"which must be between 1 and {version - 1}"
    return f"and there is no older version: raise version= of the {of} to 2 first"


def _declare(
    cls: type[Message], what: Literal["upcaster", "downcaster"], option: str, version: int
) -> Callable[[Upcaster], Upcaster]:
    """A decorator that adds a function to the class, by the older one of its two versions."""

    def declare(function: Upcaster) -> Upcaster:
        identity = identity_of(cls)
        known = cls.__upcasters__ if what == "upcaster" else cls.__downcasters__
        if inspect.iscoroutinefunction(function):
            raise UsageError(
                f"The {what} {function.__name__} of {identity} is a coroutine function: write it "
                f"with `def`."
            )
        if not isinstance(version, int) or not 1 <= version < identity.version:
            raise UsageError(
                f"The {what} {getattr(function, '__name__', function)} of {identity} has "
                f"{option}={version!r}, {why_not_older(identity.version, 'message')}."
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
            f'{where} has an invalid message name, {name!r}: write name="<owner>.<what>" in lower '
            f'case, such as name="payments.payment_captured".'
        )
    if len(name) > MOST_CHARACTERS_OF_NAME:
        raise UsageError(
            f"{where} has a message name of {len(name)} characters: write at most "
            f"{MOST_CHARACTERS_OF_NAME}."
        )
    is_number = isinstance(version, int) and not isinstance(version, bool)
    if version is None or not is_number or not 1 <= version <= LARGEST_VERSION:
        raise UsageError(
            f"{where} has an invalid version, {version!r}: write version=1 and count up from there."
        )
    if key is not None and not (isinstance(key, str) and key in cls.model_fields):
        fields = ", ".join(cls.model_fields) or "none"
        raise UsageError(f"{where} has key={key!r}, which is not one of its fields: {fields}.")
    return Identity(kind=kind, name=name, version=version, key=key)


def identity_of(message: type[Message]) -> Identity:
    """The identity of a message class; UsageError if it was declared without a name."""
    identity: Identity | None = getattr(message, "__identity__", None)
    if identity is None:
        raise UsageError(
            f"{message.__module__}.{message.__qualname__} has no name: declare it as "
            f'class {message.__name__}(Event, name="<owner>.<what>", version=1).'
        )
    return identity


def key_of(message: Message) -> str | None:
    """The value of the message's key field, as text.

    Messages with the same key are handled in order. None, so without any order, for a message
    without a key field, and for one whose value is None or empty.
    """
    key = message.__identity__.key
    value = None if key is None else getattr(message, key)
    if isinstance(value, Enum):
        value = value.value
    return None if value is None else str(value) or None
