"""Every error that EventMesh raises on purpose, named for what its reader can do about it.

Each message is one paragraph: what is wrong, where, and what to do. The command line prints it
without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class EventMeshError(Exception):
    """The base class of all errors that EventMesh raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(EventMeshError):
    """A mistake in a service, message, setting or command line: correct it."""

    exit_code = 2


class Unreachable(EventMeshError):
    """A broker or database did not answer: start it or correct its URL. A retry may help."""

    exit_code = 3


class Busy(Unreachable):
    """The server answers, but somebody else is at work on what was asked for: try again."""


class Drift(EventMeshError):
    """A schema or a database differs from what was frozen or migrated: freeze, bump or upgrade."""

    exit_code = 4


class DrainTimeout(EventMeshError):
    """Handlers were still running at the end of the drain; their messages are redelivered."""

    exit_code = 5


class PublishError(EventMeshError):
    """The broker rejected messages of a batch; all others of the batch are confirmed.

    `rejected` maps the id of each rejected message to the reason.
    """

    def __init__(self, rejected: Mapping[str, str]) -> None:
        self.rejected = rejected
        first_id, first_reason = next(iter(rejected.items()))
        super().__init__(
            f"the broker rejected {len(rejected)} message(s), the first of them {first_id}: "
            f"{first_reason}"
        )


class UndeclaredMessage(UsageError):
    """A handler published a message that its service never declared."""


class MessageTooLarge(UsageError):
    """A message exceeds the configured size limit; it was not published."""


class UnreadableMessage(EventMeshError):
    """An incoming message cannot be decoded; it becomes a dead letter with this reason."""


class Reject(EventMeshError):
    """Raised by a handler to dead-letter its message at once, without retries."""


class Conflict(EventMeshError):
    """Another transaction changed the row first: a message is retried on the new row, and an
    operator has to look again."""


class UnknownSaga(Conflict):
    """A reply names a saga that does not exist, or not yet; it is retried for about ten
    minutes."""
