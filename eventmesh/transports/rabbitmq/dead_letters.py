"""The dead letters of a subscription on RabbitMQ: listed, replayed and discarded.

They are the messages of the queue `<prefix>.dead.<subscription>`: ours, those that RabbitMQ put
there by a policy, and whatever anybody else did. A message that EventMesh did not write there has
no letter's id. It gets one that is derived from its headers and data, so that the id is the same
each time the queue is read. The second message with the same id gets `-2` appended, and so on:
copies without any difference can be replayed one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from eventmesh.clock import Clock
from eventmesh.errors import PublishError
from eventmesh.transports.base import DeadLetter, Order, Subscription
from eventmesh.transports.dead_letters import (
    Fingerprint,
    UniqueDeadLetters,
    fingerprint,
    group_copies,
)
from eventmesh.transports.rabbitmq.connection import MAX_HELD, BrokerConnection
from eventmesh.transports.rabbitmq.headers import (
    ATTEMPTS,
    DEAD_LETTER_ID,
    DIED_AT,
    ERROR,
    PARTITION,
    REASON,
    TRUNCATED,
    application_headers,
    count_header,
)
from eventmesh.transports.rabbitmq.held_messages import HeldMessages, hold_messages, move
from eventmesh.transports.rabbitmq.messages import OutgoingMessage, copy_of
from eventmesh.transports.rabbitmq.ordered.notes import Released, replayed, written
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.queue_lock import dead_letter_lock
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.cloudevents import from_headers

_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
"""What our own ids look like. Anything else is not shown as an id."""

_PARTITION = re.compile(r"([0-9]{1,3})/([0-9]{1,3})", re.ASCII)

_EPOCH = datetime.fromtimestamp(0, UTC)


READ_AT_ONCE = 100
"""How many messages of the queue are looked at before the next are."""


class DeadLetterQueue:
    """The queue of dead letters of one subscription."""

    def __init__(
        self,
        connection: BrokerConnection,
        publisher: Publisher,
        topology: Topology,
        subscription: Subscription,
        clock: Clock,
    ) -> None:
        self._lock = dead_letter_lock(connection, topology, subscription, clock)
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._subscription = subscription
        self._queue = topology.dead_letter_queue(subscription)

    async def list_oldest(
        self, limit: int, most_bytes: int | None = None, only: Collection[str] | None = None
    ) -> Sequence[DeadLetter]:
        """The oldest letters, one of each message; see `UniqueDeadLetters`. They stay."""
        for max_read in (MAX_HELD,) if only is not None else (limit, MAX_HELD):
            listing, ids, read = UniqueDeadLetters(limit, most_bytes, only), UniqueIds(), 0
            async with self._holding(max_read) as held:
                # A few at a time, so that what is not kept does not fill the memory. To the end,
                # also when the list is full: what has not arrived would go back out of its order.
                while some := await held.next(READ_AT_ONCE):
                    for letter, _ in self._read(some, ids):
                        listing.add(letter)
                        read += 1
            if listing.is_full or read < max_read:
                break  # otherwise several letters were of one message, and there are more
        return listing.letters

    async def replay(self, ids: Sequence[str], edited: Mapping[str, bytes]) -> Sequence[str]:
        """Deliver the messages of these letters again, with their edited data if there is any;
        returns the ids that were found."""
        async with self._holding() as held:
            found = self._find(await held.next(), ids)
            groups = [list(letters.values()) for letters in found]
            await self._release(found, is_replayed=True)
            bodies = [
                next((edited[each] for each in letters if each in edited), group[0].body)
                for letters, group in zip(found, groups, strict=True)
            ]
            rejected = await move(
                held,
                groups,
                [
                    self._replayed(first.header.properties, body, letters)
                    for (first, *_), body, letters in zip(groups, bodies, found, strict=True)
                ],
                self._publisher,
                self._topology.for_subscription(self._subscription),
            )
        if rejected:
            names = {place: groups[place][0].header.properties.message_id for place in rejected}
            raise PublishError(
                {names[place] or "": str(error) for place, error in rejected.items()}
            )
        return _found_of(ids, found)

    async def discard(self, ids: Sequence[str]) -> Sequence[str]:
        """Delete the messages of these letters; returns the ids that were found."""
        async with self._holding() as held:
            found = self._find(await held.next(), ids)
            await self._release(found)
            await held.acknowledge(message for letters in found for message in letters.values())
        return _found_of(ids, found)

    def _replayed(
        self, original: Basic.Properties, body: bytes, letter_ids: Collection[str]
    ) -> OutgoingMessage:
        order = self._subscription.order
        if order is None:
            return copy_of(original, body, "", self._topology.queue(self._subscription))
        return replayed(original, body, self._fronts_of(original, order)[0], letter_ids)

    async def _release(
        self, found: Sequence[Mapping[str, DeliveredMessage]], *, is_replayed: bool = False
    ) -> None:
        """Tell whoever consumes the keys of these dead letters that they are gone. Where their
        messages are replayed, these say so themselves. PublishError if the broker does not take
        that, and the letters stay: without them, nobody could release their keys."""
        order = self._subscription.order
        if order is None or order.after_dead != "hold":
            return
        notes, message_ids = [], []
        for letters in found:
            original = next(iter(letters.values())).header.properties
            released = Released(_key_of(original), tuple(letters))
            for front in self._fronts_of(original, order)[1 if is_replayed else 0 :]:
                notes.append(written(released, front))
                message_ids.append(original.message_id or "")
        if notes:
            needs = self._topology.for_subscription(self._subscription)
            rejected = await self._publisher.publish(Batch(notes), needs)
            if rejected:
                raise PublishError(
                    {message_ids[place]: str(error) for place, error in rejected.items()}
                )

    def _fronts_of(self, letter: Basic.Properties, order: Order) -> list[str]:
        """Where it may be noted that the key of a dead letter is held: in the partition that its
        message came from, and in that of its key, to which the note may have been moved. They
        differ if another program published the message, because that is in partition 0."""
        fronts = [self._topology.front_queue_of(self._subscription, _key_of(letter), order)]
        said = _PARTITION.fullmatch(str((letter.headers or {}).get(PARTITION)))
        if said and int(said[2]) == order.partitions and int(said[1]) < order.partitions:
            fronts.insert(
                0, self._topology.front_queue(self._subscription, order.partitions, int(said[1]))
            )
        return list(dict.fromkeys(fronts))

    @asynccontextmanager
    async def _holding(self, limit: int = MAX_HELD) -> AsyncIterator[HeldMessages]:
        """Hold the oldest letters while nobody else does: each of two would find a part only."""
        async with (
            self._lock.held(),
            hold_messages(self._connection, self._queue, limit) as held,
        ):
            yield held

    def _read(
        self, messages: Iterable[DeliveredMessage], ids: UniqueIds
    ) -> Iterator[tuple[DeadLetter, DeliveredMessage]]:
        """The letters in these messages of the queue, the oldest first. `ids` are those that were
        read before."""
        for message in messages:
            properties = message.header.properties
            headers = properties.headers or {}
            letter = letter_of(self._subscription, headers, properties.content_type, message.body)
            yield replace(letter, id=ids.unique(letter.id)), message

    def _find(
        self, messages: Iterable[DeliveredMessage], ids: Collection[str]
    ) -> list[dict[str, DeliveredMessage]]:
        """For each message that one of these letters is of: all letters of it by id, the oldest
        first."""
        by_id: dict[str, DeliveredMessage] = {}
        marks: list[tuple[str, Fingerprint]] = []
        for letter, message in self._read(messages, UniqueIds()):
            by_id[letter.id] = message
            marks.append((letter.id, fingerprint(letter)))
        return [
            {letter_id: by_id[letter_id] for letter_id in group}
            for group in group_copies(marks, ids)
        ]


def _found_of(ids: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """The ids that were found, each once."""
    known = {letter_id for letters in found for letter_id in letters}
    return [letter_id for letter_id in dict.fromkeys(ids) if letter_id in known]


def _key_of(properties: Basic.Properties) -> str | None:
    return from_headers(properties.headers or {}, None, b"").key


class UniqueIds:
    """Makes the ids of dead letters unique, in the order in which they are read."""

    def __init__(self) -> None:
        self._seen = Counter[str]()

    def unique(self, letter_id: str) -> str:
        """This id, with a number appended if it was seen before."""
        self._seen[letter_id] += 1
        number = self._seen[letter_id]
        return letter_id if number == 1 else f"{letter_id}-{number}"


def letter_of(
    subscription: Subscription, headers: Mapping[str, Any], content_type: str | None, data: bytes
) -> DeadLetter:
    """The dead letter in a message."""
    dead_id = headers.get(DEAD_LETTER_ID)
    is_ours = isinstance(dead_id, str) and _ID.fullmatch(dead_id) is not None
    return DeadLetter(
        id=str(dead_id) if is_ours else _derived_id(headers, content_type, data),
        subscription=subscription.name,
        envelope=from_headers(headers, content_type, data),
        reason=_reason(headers),
        error=str(headers.get(ERROR, "")),
        attempts=count_header(headers, ATTEMPTS, 1),
        died_at=_died_at(headers),
        by_broker=REASON not in headers and _last_death(headers) is not None,
    )


def _derived_id(headers: Mapping[str, Any], content_type: str | None, data: bytes) -> str:
    """An id derived from what does not change when RabbitMQ moves the message."""
    digest = hashlib.sha256(data)
    digest.update(
        repr((content_type, sorted(application_headers(headers).items()))).encode(errors="replace")
    )
    return f"derived-{digest.hexdigest()[:32]}"


def _reason(headers: Mapping[str, Any]) -> str:
    """Why it was dead-lettered, and what of it was truncated."""
    if REASON in headers:
        reason = str(headers[REASON])
    elif death := _last_death(headers):
        where = f"{death.get('reason')} in the queue {death.get('queue')}"
        reason = f"not written by EventMesh: dead-lettered by RabbitMQ, {where}"
    else:
        reason = "not written by EventMesh: it has no reason"
    return f"{reason} (truncated: {headers[TRUNCATED]})" if TRUNCATED in headers else reason


def _died_at(headers: Mapping[str, Any]) -> datetime:
    """When it was dead-lettered, always with a time zone; 1970 if that is unknown."""
    try:
        time: Any = datetime.fromisoformat(str(headers.get(DIED_AT)))
    except ValueError:
        time = (_last_death(headers) or {}).get("time")
    if not isinstance(time, datetime):
        return _EPOCH
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry that RabbitMQ wrote when it last dead-lettered the message by itself."""
    match headers.get("x-death"):
        case [dict() as death, *_]:
            return death
        case _:
            return None
