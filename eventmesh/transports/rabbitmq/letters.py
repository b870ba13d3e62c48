"""What is in a queue of dead letters, read as dead letters: ours, those that RabbitMQ put there by
a policy, and whatever anybody else did. Pure; no connection here.

A message that EventMesh did not bury has no letter's id. It gets one that is derived from its
headers and data, so that it is the same each time that the queue is read. The second message with
the same id gets `-2` appended, and so on: copies that differ in nothing can be replayed one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from eventmesh.transports.base import DeadLetter, Subscription
from eventmesh.transports.rabbitmq.topology import (
    ATTEMPTS,
    CUT,
    DEAD_ID,
    DIED_AT,
    ERROR,
    REASON,
    copied,
    count_in,
)
from eventmesh.wire.cloudevents import from_headers

_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
"""What our own ids look like; anything else in their place is not shown as an id."""

_EPOCH = datetime.fromtimestamp(0, UTC)


class LetterIds:
    """Makes the ids of letters that are read in their order different from each other."""

    def __init__(self) -> None:
        self._seen = Counter[str]()

    def unique(self, letter_id: str) -> str:
        """This id, with a number where it has been seen before."""
        self._seen[letter_id] += 1
        number = self._seen[letter_id]
        return letter_id if number == 1 else f"{letter_id}-{number}"


def letter_of(
    subscription: Subscription, headers: Mapping[str, Any], content_type: str | None, data: bytes
) -> DeadLetter:
    """The dead letter in a message."""
    dead_id = headers.get(DEAD_ID)
    is_ours = isinstance(dead_id, str) and _ID.fullmatch(dead_id) is not None
    return DeadLetter(
        id=str(dead_id) if is_ours else _derived_id(headers, content_type, data),
        subscription=subscription.name,
        envelope=from_headers(headers, content_type, data),
        reason=_reason(headers),
        error=str(headers.get(ERROR, "")),
        attempts=count_in(headers, ATTEMPTS, 1),
        died_at=_died_at(headers),
    )


def _derived_id(headers: Mapping[str, Any], content_type: str | None, data: bytes) -> str:
    """From what stays the same when RabbitMQ moves a message."""
    digest = hashlib.sha256(data)
    digest.update(repr((content_type, sorted(copied(headers).items()))).encode(errors="replace"))
    return f"derived-{digest.hexdigest()[:32]}"


def _reason(headers: Mapping[str, Any]) -> str:
    """Why it is dead, and what of it could not be kept."""
    if REASON in headers:
        reason = str(headers[REASON])
    elif death := _last_death(headers):
        where = f"{death.get('reason')} in the queue {death.get('queue')}"
        reason = f"not written by EventMesh: RabbitMQ put it here, {where}"
    else:
        reason = "not written by EventMesh: it has no reason"
    return f"{reason} (not kept whole; cut: {headers[CUT]})" if CUT in headers else reason


def _died_at(headers: Mapping[str, Any]) -> datetime:
    """When it died, if it says so, always with a time zone."""
    try:
        said: Any = datetime.fromisoformat(str(headers.get(DIED_AT)))
    except ValueError:
        said = (_last_death(headers) or {}).get("time")
    if not isinstance(said, datetime):
        return _EPOCH
    return said if said.tzinfo else said.replace(tzinfo=UTC)


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What RabbitMQ noted of the last time that it dead-lettered the message itself."""
    match headers.get("x-death"):
        case [dict() as death, *_]:
            return death
        case _:
            return None
