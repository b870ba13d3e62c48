"""Converting the data of a message between the versions of its model.

A model has one version, and reads older data by upcasters, each of which leads from version n to
n + 1: a model of version 4 with upcasters from 2 and 3 reads versions 2, 3 and 4. Downcasters lead
the other way, from version n + 1 to n, for a service that must still publish an older version.
Both are pure functions of the data as a dict, before it is validated.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from eventmesh.contracts.message import Message, identity_of
from eventmesh.error_text import type_and_message
from eventmesh.errors import UnreadableMessage, UsageError


def readable_versions(model: type[Message]) -> range:
    """The versions that this model can read: its own, and back as far as its upcasters reach."""
    oldest = model.__identity__.version
    while oldest - 1 in model.__upcasters__:
        oldest -= 1
    return range(oldest, model.__identity__.version + 1)


def upcast(model: type[Message], data: dict[str, Any], version: int) -> dict[str, Any]:
    """Convert data of `version` to the model's own version.

    UnreadableMessage when the model does not read that version, or an upcaster fails.
    """
    if version not in readable_versions(model):
        raise UnreadableMessage(describe_unreadable_version(model, version))
    for step in range(version, model.__identity__.version):
        try:
            data = model.__upcasters__[step](data)
        except Exception as error:  # a user's function may raise anything
            raise UnreadableMessage(
                f"the upcaster of {model.__identity__.name} from version {step} failed: "
                f"{type_and_message(error)}"
            ) from error
    return data


def check_writable(model: type[Message], version: int) -> None:
    """UsageError unless the model's downcasters reach back to that version."""
    identity = identity_of(model)
    is_number = isinstance(version, int) and not isinstance(version, bool)
    if not is_number or not 1 <= version <= identity.version:
        raise UsageError(
            f"{identity} cannot be written as version {version!r}: "
            + (
                f"choose one from 1 to {identity.version}."
                if identity.version > 1
                else "it has no other version than 1."
            )
        )
    for step in range(identity.version - 1, version - 1, -1):
        if step not in model.__downcasters__:
            raise UsageError(
                f"{identity} cannot be written as version {version}: it has no downcaster to "
                f"version {step}. Add @{model.__name__}.downcaster(to_version={step})."
            )


def downcast(model: type[Message], data: dict[str, Any], version: int) -> dict[str, Any]:
    """Convert data of the model's own version to an older `version`.

    UsageError when a downcaster is missing, fails or does not return a dict.
    """
    check_writable(model, version)
    for step in range(model.__identity__.version - 1, version - 1, -1):
        function = model.__downcasters__[step]
        name = f"The downcaster {getattr(function, '__name__', function)} of {model.__identity__}"
        try:
            data = function(data)
        except Exception as error:  # a user's function may raise anything
            raise UsageError(
                f"{name} to version {step} failed: {type_and_message(error)}. Correct it."
            ) from error
        if not isinstance(data, dict):
            raise UsageError(
                f"{name} to version {step} returned a {type(data).__name__}: return a dict."
            )
    return data


def describe_unreadable_version(model: type[Message], version: int, detail: str = "") -> str:
    """The reason with which a message of this version is dead-lettered."""
    readable = readable_versions(model)
    first, last = readable[0], readable[-1]
    known = str(last) if first == last else f"{first} to {last}"
    return (
        f"version {version} of {model.__identity__.name} is not known here: this service reads "
        f"version {known}{detail}. Deploy a service that reads it, then replay this message."
    )


def describe_invalid_data(model: type[Message], error: ValidationError) -> str:
    """Why the data is invalid, in one line: fields and reasons, and never values, which may be
    secret."""
    problems = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'data'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )
    return f"the data is not a valid {model.__identity__}: {problems}"
