"""From the data of an older version to the model of today, one pure step at a time."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from eventmesh.contracts.message import Message
from eventmesh.errors import UnreadableMessage


def readable_versions(model: type[Message]) -> range:
    """The versions that this model can read: its own, and back as far as upcasters reach."""
    oldest = model.__identity__.version
    while oldest - 1 in model.__upcasters__:
        oldest -= 1
    return range(oldest, model.__identity__.version + 1)


def upcast(model: type[Message], data: dict[str, Any], version: int) -> dict[str, Any]:
    """The data as the model's own version; UnreadableMessage when no chain leads there."""
    if version not in readable_versions(model):
        raise UnreadableMessage(unknown(model, version))
    for step in range(version, model.__identity__.version):
        try:
            data = model.__upcasters__[step](data)
        except Exception as error:  # whatever a user's function raises, this data stays unreadable
            raise UnreadableMessage(
                f"the upcaster of {model.__identity__.name} from version {step} failed: {error!r}"
            ) from error
    return data


def unknown(model: type[Message], version: int, because: str = "") -> str:
    """Why a version that the model does not read can never be read here."""
    return (
        f"version {version} of {model.__identity__.name} is not known here: this service reads "
        f"version {_spell(readable_versions(model))}{because}. Deploy a service that reads it, "
        f"then replay this message."
    )


def explain(model: type[Message], error: ValidationError) -> str:
    """What does not fit, in one line: field, reason; never the values, which may be secret."""
    problems = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'data'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )
    return f"the data does not fit {model.__identity__}: {problems}"


def _spell(versions: range) -> str:
    first, last = versions[0], versions[-1]
    return str(last) if first == last else f"{first} to {last}"
