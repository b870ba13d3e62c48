"""Consuming one partition: its queue, its front and its moved queue, over a channel of their own.

Messages are handed out once the partition is open, which is when all that is noted in its front has
been read. Its end is not visible in a queue, so whoever begins to consume publishes a note there,
`Opened`, and waits for it. It comes once nobody else consumes the front, and after all that was
noted before. A note of ours that RabbitMQ has taken back from somebody else does not count: more
may have been noted while it was there.

    A is killed while B waits     front   opened B (A has it), held (A has it)
    B reads what A had                    opened B: do not open yet; held: the key is held
    B asks again                          opened B: open

If messages were moved to the partition, a note in its front says so. Then they come first: what the
queue delivers waits until all moved messages have arrived. When they are settled, the moved queue
is deleted, and then the note.

RabbitMQ counts how often it took a message back, and that says little here: a partition's worker
holds hundreds of its messages, and all of them are taken back when it dies, stops or gives the
partition up. So that alone does not count as a delivery. But a message that was taken back ten
times is a suspect. It is handed out once that start of it is noted, and what was noted before
counts as deliveries, unless its worker has left in good order. After two starts, it is handed out
while no other such suspect is.

Of a message that kills its workers, and a neighbour in the same partition, with at most 10
deliveries:

| worker   | the message                          | the neighbour                        |
|----------|--------------------------------------|--------------------------------------|
| 1 to 10  | delivery 1                           | delivery 1, or only held             |
| 11, 12   | noted, deliveries 1 and 2            | noted, deliveries 1 and 2            |
| 13 to 20 | noted again, deliveries 3 to 10      | only held                            |
| 21       | delivery 11, a dead letter           | noted again, delivery 3, and handled |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.frame import marshal

from eventmesh.clock import Clock
from eventmesh.transports.base import AfterDead, Delivery
from eventmesh.transports.rabbitmq.connection import MAX_HELD, BrokerConnection, close_channel
from eventmesh.transports.rabbitmq.frames import DeliveriesByConsumer
from eventmesh.transports.rabbitmq.headers import (
    attempt_and_deliveries,
)
from eventmesh.transports.rabbitmq.ordered.mailbox import Mail, Mailbox
from eventmesh.transports.rabbitmq.ordered.notes import (
    Held,
    LastMoved,
    Moved,
    Opened,
    Progress,
    Released,
    Replayed,
    read,
)
from eventmesh.transports.rabbitmq.received import ReceivedMessage
from eventmesh.transports.rabbitmq.settlement import (
    ACK_TIME,
    ACKS_IN_FLIGHT,
    Original,
    plan_acknowledgements,
)
from eventmesh.wire.cloudevents import from_headers
from eventmesh.wire.envelope import Envelope

FIRST_ARRIVALS = 0.2
"""Seconds for which a partition that opens waits for the messages that were there: those of a key
are received together then."""

ASKED_AGAIN_AFTER, LONGEST_ASKING = 0.02, 1.0
"""Seconds after which we ask again: after the first arrival, because somebody else must have got
our note, or after a failure to write it; doubled each time, up to the longest. RabbitMQ hands over
queue and front one by one, so that somebody else may consume the front for as long as the workers
do not agree on whose it is."""

SUSPECT_AFTER = 10
"""How often a message is taken back, in one attempt, until it is a suspect. A rolling restart of
some workers may take it back several times, and each note costs about as much as a message."""

MOST_HOLDERS = 50_000
"""How many dead letters of a partition may hold keys before nothing more of it is handed out. Their
notes stay in the front, of which RabbitMQ delivers MAX_HELD messages and then nothing more, also
without a limit: for a quorum queue that is one of 2,000."""

ALONE_AFTER = 2
"""How many starts of a suspect are noted until it is handed out while no other such is. One may be
innocent: its worker was stopped, or a neighbour killed it."""

UNCLAIMED_AFTER = 10.0
"""Seconds after which the message of a note would have arrived, if it was not settled before."""

MAIN, FRONT, MOVED = b"main", b"front", b"moved"


@dataclass(slots=True, eq=False)
class Message:
    """A message that was delivered to us. `returned` is how often RabbitMQ had taken it back from
    others, and `returned_before` how often before this attempt. `starts` is how often it was noted
    before us that this attempt is handed out, and `start_is_noted` whether we have noted it.
    `delivery` is how it was handed out last, until it is taken back; `note` is the tag of the note
    on its progress."""

    partition: Partition
    received: ReceivedMessage
    envelope: Envelope
    attempt: int
    returned: int
    returned_before: int = 0
    starts: int = 0
    start_is_noted: bool = False
    note: int | None = None
    delivery: Delivery | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether it may be ending its workers, so that it is noted that it is handed out."""
        return self.starts > 0 or self.returned - self.returned_before >= SUSPECT_AFTER

    def hand_out(self, mail: Mail[Message]) -> Delivery:
        self.delivery = Delivery(
            self.envelope, attempt=self.attempt, deliveries=1 + self.starts, token=mail
        )
        return self.delivery

    def begin_attempt(self) -> None:
        """The next attempt begins."""
        self.attempt += 1
        self.returned_before = self.returned
        self.starts = 0
        self.start_is_noted = False

    def progress(self, due: float, *, starts: int) -> Progress:
        """The note on its attempt."""
        return Progress(
            self.envelope.key, self.envelope.id, self.attempt, due, self.returned_before, starts
        )

    def original(self) -> Original:
        _, headers = self.received.essentials()
        return Original(self.received.properties(), headers, self.received.body, self.attempt)


class Partition:
    """A partition that this worker consumes, or waits to consume."""

    def __init__(
        self,
        number: int,
        token: str,
        after_dead: AfterDead,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.number = number
        self.token = token
        self.mailbox = Mailbox[Message]()
        self.is_closing = False
        self.shall_note_opening = True
        self._after_dead = after_dead
        self._clock = clock
        self._changed = changed
        self._channel: Channel | None = None
        self._unacknowledged: dict[int, None] = {}
        self._unacknowledged_of_front: set[int] = set()
        self._obsolete: list[int] = []
        self._mails: dict[str, Mail[Message]] = {}
        self._unclaimed: dict[str, tuple[int, Progress]] = {}
        self._holders: dict[str, tuple[int | None, Held]] = {}
        self._held_before: dict[str, list[Held]] = {}
        """The dead letters that held their keys before we opened, by the ids of their messages."""
        self._early: list[Message] = []
        self._opened_at: float | None = None
        self._moved_notes: list[int] = []
        """The tags of the notes on moved messages, and of the last in the moved queue. They are
        acknowledged when that is deleted: until then, another worker may need them."""
        self._moved: set[int] = set()
        """The tags of the unsettled messages of the moved queue."""
        self._awaits_moved = False
        self.consumes_moved = False
        self._asking_again: asyncio.TimerHandle | None = None
        self._asking_pause = ASKED_AGAIN_AFTER
        self._expected = self._arrived = 0
        self._acks_sent, self._last_ack_at = 0, 0.0

    async def start(
        self,
        connection: BrokerConnection,
        queue: str,
        front: str,
        lost: Callable[[str], None],
        most: int,
    ) -> None:
        """Begin to consume, as soon as nobody else does."""
        channel = self._channel = await connection.open_channel(confirms=False)
        channel.closing.add_done_callback(
            lambda _: None if self.is_closing else lost("a channel of it is closed")
        )
        channel.on_consumer_cancel_callbacks.add(
            lambda _: lost("the broker cancelled a consumer: a queue of it is gone")
        )
        connection.tap(channel, DeliveriesByConsumer(self._arrive))
        waiting = await channel.queue_declare(queue, passive=True)
        self._expected = min(waiting.message_count or 0, most)
        await channel.basic_qos(prefetch_count=most)
        await channel.basic_consume(queue, _ignore, consumer_tag=MAIN.decode())
        await channel.basic_qos(prefetch_count=MAX_HELD)
        await channel.basic_consume(front, _ignore, consumer_tag=FRONT.decode())

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    @property
    def has_moved(self) -> bool:
        """Whether messages were moved here, and their queue is not deleted yet."""
        return self.is_open and bool(self._moved_notes)

    @property
    def has_settled_moved(self) -> bool:
        """Whether all messages that were moved here are settled."""
        return not (self._awaits_moved or self._moved)

    def ask_again_later(self) -> None:
        """Note our opening again after a pause, which grows each time, until we have read it."""
        if self._asking_again is None:
            loop = asyncio.get_running_loop()
            self._asking_again = loop.call_later(self._asking_pause, self._ask_again)
            self._asking_pause = min(2 * self._asking_pause, LONGEST_ASKING)

    async def consume_moved(self, queue: str, most: int) -> None:
        """Begin to consume the messages that were moved here."""
        if self._channel is not None:
            self.consumes_moved = True
            await self._channel.basic_qos(prefetch_count=most)
            await self._channel.basic_consume(queue, _ignore, consumer_tag=MOVED.decode())

    async def delete_moved(self, queue: str) -> None:
        """Delete the queue of moved messages, which are settled, and then the note of them."""
        if self._channel is not None:
            await self._channel.basic_cancel(MOVED.decode())
            await self._channel.queue_delete(queue)
            self.forget_moved()

    def forget_moved(self) -> None:
        """The queue of moved messages is gone."""
        self._obsolete += self._moved_notes
        self._moved_notes.clear()
        self._end_moved()

    def _end_moved(self) -> None:
        """All messages that were moved here have arrived."""
        if self._awaits_moved:
            self._awaits_moved = False
            self._opened_at = self._clock.monotonic()
            self._put_early()
            self._changed()

    def _put_early(self) -> None:
        early, self._early = self._early, []
        for message in early:
            self._put(message)

    def take(self, limit: int, now: float, may_start: Callable[[Message], bool]) -> list[Delivery]:
        """Messages to hand out, up to `limit`; of suspects only those that `may_start`."""
        if self.is_closing or self._has_too_many_holders or not self._has_settled_in(now):
            return []
        deliveries: list[Delivery] = []
        taken_back: set[Mail[Message]] = set()
        for mail in self.mailbox.take(limit, now):
            if mail in taken_back:
                continue
            if mail.message.is_suspect and not may_start(mail.message):
                taken_back.update(self.mailbox.take_back(mail, itself=True))
            else:
                deliveries.append(mail.message.hand_out(mail))
        return deliveries

    def started(self) -> list[Message]:
        """The unsettled suspects of which it is noted that they were handed out."""
        mails = self._mails.values()
        return [mail.message for mail in mails if mail.message.start_is_noted]

    def next_change(self) -> float | None:
        """When messages may become free without anything arriving or being settled."""
        if self.is_closing or self._has_too_many_holders:
            return None
        if self._opened_at is None:
            return self.mailbox.next_due() if self._front_is_full else None
        if self._arrived < self._expected:
            return self._opened_at + FIRST_ARRIVALS
        return self.mailbox.next_due()

    def finish(self, mail: Mail[Message]) -> list[int]:
        """This message is settled for good: the tags to acknowledge."""
        message = mail.message
        self.mailbox.done(mail)
        self._moved.discard(message.received.tag)
        message.delivery = None
        if self._mails.get(message.envelope.id) is mail:
            del self._mails[message.envelope.id]
        tags = [message.received.tag]
        if message.note is not None:
            tags.append(message.note)
            message.note = None
        return tags

    def retry(self, mail: Mail[Message], delay: float, *, next_attempt: bool) -> int:
        """Let this message, and what was handed out after it of its key, wait for so long; returns
        how many these are."""
        if next_attempt:
            mail.message.begin_attempt()
        taken_back = self.take_back(mail, itself=True)
        if delay > 0:
            self.mailbox.postpone(mail.key, self._clock.monotonic() + delay)
        return taken_back

    def take_back(self, mail: Mail[Message], *, itself: bool = False) -> int:
        """Take back what was handed out of its key after this message; returns how many."""
        taken_back = self.mailbox.take_back(mail, itself=itself)
        for each in taken_back:
            each.message.delivery = None
        return len(taken_back)

    def hold(self, held: Held) -> None:
        """A dead letter holds its key from now on; the note of it is on its way."""
        self._holders.setdefault(held.letter_id, (None, held))
        self.mailbox.hold(held.key, held.letter_id)

    def release(self, held: Held) -> None:
        """The dead letter does not exist after all."""
        self._release(held.key, [held.letter_id])

    def acknowledgements(self, tags: Iterable[int] = ()) -> bytes:
        """The frames that acknowledge these, and notes that do not matter any more. The caller
        sends them at once."""
        channel = self._channel
        obsolete, self._obsolete = self._obsolete, []
        done = {tag for tag in (*tags, *obsolete) if tag in self._unacknowledged}
        if not done or channel is None or channel.is_closed:
            return b""
        acknowledgements = plan_acknowledgements(self._unacknowledged, done)
        for tag in done:
            del self._unacknowledged[tag]
        self._unacknowledged_of_front -= done
        now = self._clock.monotonic()
        if now - self._last_ack_at >= ACK_TIME:
            self._acks_sent = 0
        self._acks_sent += len(acknowledgements)
        self._last_ack_at = now
        number = channel.number
        return b"".join(
            marshal(Basic.Ack(tag, multiple), number) for tag, multiple in acknowledgements
        )

    def forget_unclaimed(self) -> None:
        """Let go of notes whose messages do not come: they were settled."""
        if not self._unclaimed or self._opened_at is None or self._awaits_moved:
            return
        if self._clock.monotonic() - self._opened_at > UNCLAIMED_AFTER:
            self._obsolete += [tag for tag, _ in self._unclaimed.values()]
            self._unclaimed.clear()

    async def close(self) -> None:
        """Give everything back. RabbitMQ drops acknowledgements that it has postponed when the
        channel closes, and delivers their messages again: see `held_messages`."""
        self.is_closing = True
        since = self._clock.monotonic() - self._last_ack_at
        if self._acks_sent > ACKS_IN_FLIGHT and since < ACK_TIME:
            await self._clock.sleep(ACK_TIME - since)
        channel, self._channel = self._channel, None
        if channel is not None:
            await close_channel(channel)

    @property
    def _has_too_many_holders(self) -> bool:
        return len(self._holders) >= MOST_HOLDERS

    @property
    def _front_is_full(self) -> bool:
        """Whether RabbitMQ delivers nothing more of the front until something of it is settled."""
        return len(self._unacknowledged_of_front) >= MAX_HELD

    def _has_settled_in(self, now: float) -> bool:
        if self._opened_at is None:
            # Then only replayed messages wait in the mailbox, which come before all others.
            return self._front_is_full
        return self._arrived >= self._expected or now >= self._opened_at + FIRST_ARRIVALS

    def _arrive(self, consumer: bytes, received: ReceivedMessage) -> None:
        content_type, headers = received.essentials()
        self._unacknowledged[received.tag] = None
        if self._opened_at is None:
            # So nobody else consumes the queue any more, but may have got our note.
            self.ask_again_later()
        if consumer == FRONT:
            self._unacknowledged_of_front.add(received.tag)
            self._read(received, headers, content_type)
            return
        if consumer == MOVED:
            self._arrive_moved(received, headers, content_type)
            return
        self._arrived += 1
        message = _message(self, received, headers, content_type)
        if self._opened_at is None or self._awaits_moved:
            self._early.append(message)  # what is noted may come before it
        else:
            self._put(message)

    def _arrive_moved(
        self, received: ReceivedMessage, headers: dict[str, Any], content_type: str | None
    ) -> None:
        if isinstance(read(headers, received.body), LastMoved):
            self._moved_notes.append(received.tag)
            self._end_moved()
        else:
            self._moved.add(received.tag)
            message = _message(self, received, headers, content_type)
            self._release_for(message)  # nobody knows whether it was returned: it is a copy
            self._put(message)

    def _read(
        self, received: ReceivedMessage, headers: dict[str, Any], content_type: str | None
    ) -> None:
        """Read what is noted in the front."""
        match read(headers, received.body):
            case Opened(token):
                self._obsolete.append(received.tag)
                _, deliveries = attempt_and_deliveries(headers)
                if token == self.token and deliveries == 1:
                    self._open()
            case Progress() as note:
                self._note_attempt(received.tag, note)
            case Held() as note:
                self._note_holder(received.tag, note)
            case Released(key, letter_ids):
                self._release(key, letter_ids)
                self._obsolete.append(received.tag)
                self._changed()
            case Replayed(letter_ids):
                message = _message(self, received, headers, content_type)
                self._release(message.envelope.key, letter_ids)
                self._put(message, comes_first=True)
            case Moved():
                self._moved_notes.append(received.tag)
                self._awaits_moved = True
            case LastMoved():
                self._obsolete.append(received.tag)

    def _put(self, message: Message, *, comes_first: bool = False) -> None:
        mail = Mail(message.envelope.key, message, comes_first)
        if message.returned:
            self._release_for(message)
        self._mails[message.envelope.id] = mail
        self.mailbox.put(mail)
        if claimed := self._unclaimed.pop(message.envelope.id, None):
            self._resume(mail, *claimed)
        self._changed()

    def _open(self) -> None:
        """Hand out messages from now on: all that is noted has been read."""
        if self._opened_at is None:
            self._opened_at = self._clock.monotonic()
            if not self._awaits_moved:
                self._put_early()
            self._changed()

    def _ask_again(self) -> None:
        self._asking_again = None
        if self._opened_at is None and self._channel is not None:
            self.shall_note_opening = True
            self._changed()
            self.ask_again_later()

    def _note_attempt(self, tag: int, note: Progress) -> None:
        """A note on the attempt of a message: ours, or from before we consumed."""
        mail = self._mails.get(note.message_id)
        if mail is None and self._opened_at is not None:
            # Our own, and the message has been settled meanwhile. If it was written late by who
            # consumed before us, the message begins with an earlier attempt.
            self._obsolete.append(tag)
        elif mail is None:
            earlier = self._unclaimed.pop(note.message_id, None)
            if earlier is not None:
                self._obsolete.append(earlier[0])
            self._unclaimed[note.message_id] = tag, note
        elif self._opened_at is None:
            self._resume(mail, tag, note)
        else:
            self._replace_note(mail.message, tag)

    def _resume(self, mail: Mail[Message], tag: int, note: Progress) -> None:
        """Go on with a message where the consumer before us was."""
        message = mail.message
        self._replace_note(message, tag)
        message.attempt = max(message.attempt, note.attempt)
        message.returned_before = min(note.returned, message.returned)
        message.starts = note.starts
        delay = note.due - self._clock.now().timestamp()
        if delay > 0:
            self.mailbox.postpone(mail.key, self._clock.monotonic() + delay)

    def _replace_note(self, message: Message, tag: int) -> None:
        if message.note is not None:
            self._obsolete.append(message.note)
        message.note = tag

    def _note_holder(self, tag: int, held: Held) -> None:
        if self._after_dead == "continue" and held.letter_id not in self._holders:
            self._obsolete.append(tag)  # from a time when the subscription had another order
            return
        if held.letter_id in self._holders:
            self._holders[held.letter_id] = tag, held
        elif self._opened_at is None and held.message_id not in self._mails:
            self._holders[held.letter_id] = tag, held
            self._held_before.setdefault(held.message_id, []).append(held)
            self.mailbox.hold(held.key, held.letter_id)
        else:
            # Our own, and released meanwhile. Or its message comes again: it was replayed and is
            # in the front, or the note was written late by who consumed before us.
            self._obsolete.append(tag)

    def _release_for(self, message: Message) -> None:
        """A message comes again whose worker died after it had noted that the key is held by its
        dead letter: it is handled again instead."""
        held_before = self._held_before.pop(message.envelope.id, [])
        self._release(message.envelope.key, [held.letter_id for held in held_before])

    def _release(self, key: str | None, letter_ids: Collection[str]) -> None:
        for letter_id in letter_ids:
            tag, _ = self._holders.pop(letter_id, (None, None))
            if tag is not None:
                self._obsolete.append(tag)
            self.mailbox.release(key, letter_id)


def _message(
    partition: Partition,
    received: ReceivedMessage,
    headers: dict[str, Any],
    content_type: str | None,
) -> Message:
    envelope = from_headers(headers, content_type, received.body)
    attempt, deliveries = attempt_and_deliveries(headers)
    return Message(partition, received, envelope, attempt, returned=deliveries - 1)


async def _ignore(_: DeliveredMessage) -> None:
    """The client library's callback; deliveries go to the tap instead."""
