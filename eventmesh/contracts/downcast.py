"""From the data of today's model to that of an older version, for those who read no newer one."""

from __future__ import annotations

from typing import Any

from eventmesh.contracts.message import Message, identity_of
from eventmesh.errors import UsageError


def check_writable(model: type[Message], version: int) -> None:
    """UsageError when this model cannot be written as that version."""
    identity = identity_of(model)
    if isinstance(version, bool) or not 1 <= version <= identity.version:
        raise UsageError(
            f"{identity} cannot be written as version {version!r}: name one from 1 to "
            f"{identity.version}."
        )
    for step in range(identity.version - 1, version - 1, -1):
        if step not in model.__downcasters__:
            raise UsageError(
                f"{identity} cannot be written as version {version}: it has no downcaster to "
                f"version {step}. Add @{model.__name__}.downcaster(to_version={step})."
            )


def downcast(model: type[Message], data: dict[str, Any], version: int) -> dict[str, Any]:
    """The data of the model's own version as that of an older one; UsageError that names the
    downcaster that fails."""
    check_writable(model, version)
    for step in range(model.__identity__.version - 1, version - 1, -1):
        function = model.__downcasters__[step]
        name = f"The downcaster {getattr(function, '__name__', function)} of {model.__identity__}"
        try:
            data = function(data)
        except Exception as error:  # whatever a user's function raises, nothing can be written
            raise UsageError(f"{name} to version {step} failed: {error!r}. Correct it.") from error
        if not isinstance(data, dict):
            raise UsageError(
                f"{name} to version {step} returned a {type(data).__name__}: return a dict."
            )
    return data
