"""Publishes a batch to Redis in one step, in which nothing overtakes a rejected message of its key.

A transaction continues after a command that failed. That is harmless if the messages of each key go
to one stream: when Redis rejects one (the key has another type, the stream has no ids left, our
user may not write it), it rejects all later ones too. If a key has messages for several streams, a
script adds the batch instead, and leaves out later messages of a rejected one's key. The script
costs half as much again (measured: 7 µs a message instead of 4.5), so it is used only then.

If our user may not write some of the streams, Redis stores nothing of the batch. Those messages
are rejected, and the others are published in a second round.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import ALL_CONFIRMED, PublishResult
from eventmesh.transports.redis.connection import Redis, code_of
from eventmesh.transports.redis.entries import flat
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.scripts.common import Command, call
from eventmesh.transports.redis.scripts.publishing import PUBLISH
from eventmesh.wire.cloudevents import to_fields
from eventmesh.wire.envelope import Envelope

REPLICA_TIMEOUT = 5.0
"""Seconds for replicas to confirm a message, if the URL asks for that."""

SAME_MILLISECOND = 0.002
"""Seconds after which another batch is not stored in the same millisecond."""

CAREFUL_AFTER_LOSS = 60.0
"""Seconds after a lost connection in which Redis's clock may be behind the ids that it has."""

OVERTAKING = "an earlier message of its key was rejected"


class Publisher:
    def __init__(self, redis: Redis, layout: Layout, wait_replicas: int, clock: Clock) -> None:
        self._redis = redis
        self._layout = layout
        self._wait_replicas = wait_replicas
        self._clock = clock
        self._streams: set[str | bytes | int] = set()
        self._latest = (0, 0)
        """The highest id of an entry that we have added, if we know several streams."""
        self._careful_until = 0.0

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        rejected: dict[str, str] = {}
        while waiting := [each for each in envelopes if each.id not in rejected]:
            additions: list[Command] = [
                ("XADD", self._layout.stream(each.name), "*", *flat(to_fields(each).items()))
                for each in waiting
            ]
            # Most batches have one stream, which is quick to check.
            streams = {addition[1] for addition in additions}
            several = len(streams) > 1
            self._streams |= streams
            is_careful = len(self._streams) > 1 and self._clock.monotonic() < self._careful_until
            scripted = is_careful or (several and needs_script(waiting))
            store = self._script if scripted else self._transact
            try:
                newly_rejected, stored = await store(waiting, additions)
                self._be_careful(SAME_MILLISECOND)
            except Unreachable as error:
                self._be_careful(CAREFUL_AFTER_LOSS)
                return PublishResult.interrupted(waiting, error, rejected)
            rejected |= newly_rejected
            if stored:
                break
        return PublishResult(rejected) if rejected else ALL_CONFIRMED

    def _be_careful(self, seconds: float) -> None:
        """From now on for so long, give ids after those that we know."""
        self._careful_until = max(self._careful_until, self._clock.monotonic() + seconds)

    async def _transact(
        self, envelopes: Sequence[Envelope], additions: Sequence[Command]
    ) -> tuple[dict[str, str], bool]:
        """Add these in a transaction. Returns the rejected messages, and whether the others are
        stored: if our user may not write one of the streams, none is."""
        answers = await self._redis.attempt(
            [("MULTI",), *additions, ("EXEC",), *self._confirmation()]
        )
        queued, executed = answers[: len(additions) + 1], answers[len(additions) + 1]
        if isinstance(executed, ResponseError):
            if forbidden := _forbidden(envelopes, queued[1:]):
                return forbidden, False
            causes = [answer for answer in queued if isinstance(answer, ResponseError)]
            raise self._redis.rejection((causes or [executed])[0])
        for answer in executed if len(self._streams) > 1 else executed[-1:]:
            if not isinstance(answer, ResponseError):
                self._latest = max(self._latest, _numbers(answer))
        self._check_replicas(answers[len(additions) + 2 :])
        rejected = {
            envelope.id: str(answer)
            for envelope, answer in zip(envelopes, executed, strict=True)
            if isinstance(answer, ResponseError)
        }
        return rejected, True

    async def _script(
        self, envelopes: Sequence[Envelope], additions: Sequence[Command]
    ) -> tuple[dict[str, str], bool]:
        """As `_transact`, but later messages of a rejected one's key are rejected as well."""
        script = scripted([each.key for each in envelopes], additions, self._latest)
        answer, *confirmed = await self._redis.attempt([script, *self._confirmation()])
        if isinstance(answer, ResponseError):
            if code_of(answer) == "NOPERM" and (
                forbidden := await self._find_forbidden(envelopes, additions)
            ):
                return forbidden, False
            raise self._redis.rejection(answer)
        refused, latest = answer
        self._latest = max(self._latest, _numbers(latest))
        self._check_replicas(confirmed)
        rejected = {envelopes[at - 1].id: error.decode() or OVERTAKING for at, error in refused}
        return rejected, True

    async def _find_forbidden(
        self, envelopes: Sequence[Envelope], additions: Sequence[Command]
    ) -> dict[str, str]:
        """The messages whose stream our user may not write, and later ones of their keys.

        For a script, Redis reports that one of its streams is forbidden, but not which one. A
        transaction that is made to fail shows it, and stores nothing.
        """
        # EXEC with an argument is an error, and after an error EXEC discards the transaction.
        ending: list[Command] = [("EXEC", "nothing"), ("EXEC",)]
        answers = await self._redis.attempt([("MULTI",), *additions, *ending])
        return _forbidden(envelopes, answers[1 : -len(ending)])

    def _confirmation(self) -> list[Command]:
        """The command that waits for replicas, if the URL asks for them."""
        if not self._wait_replicas:
            return []
        return [("WAIT", self._wait_replicas, int(REPLICA_TIMEOUT * 1000))]

    def _check_replicas(self, answers: Collection[Any]) -> None:
        for count in answers:
            if isinstance(count, ResponseError):
                raise self._redis.rejection(count)
            if count < self._wait_replicas:
                raise Unreachable(
                    f"Redis has stored messages, but {count} instead of {self._wait_replicas} of "
                    f"its replicas have confirmed them in {REPLICA_TIMEOUT:.0f} s. Start the "
                    f"replicas, or ask for fewer by wait_replicas in EVENTMESH_BROKER_URL."
                )


def needs_script(envelopes: Sequence[Envelope]) -> bool:
    """Whether a key has messages for several streams."""
    name_of: dict[str, str] = {}
    return any(
        name_of.setdefault(key, each.name) != each.name
        for each in envelopes
        if (key := each.key) is not None
    )


def scripted(
    keys: Sequence[str | None], additions: Sequence[Command], latest: tuple[int, int]
) -> Command:
    """The script call that makes these additions, with ids after the `latest`; `keys` are the
    messages' keys."""
    streams: dict[str | bytes | int, int] = {}
    numbers: dict[str | None, int] = {None: 0}
    arguments: list[str | bytes | int] = [f"{latest[0]}-{latest[1]}"]
    for key, addition in zip(keys, additions, strict=True):
        stream = streams.setdefault(addition[1], len(streams) + 1)
        fields = addition[3:]
        arguments += (stream, numbers.setdefault(key, len(numbers)), len(fields))
        arguments += fields
    return call(PUBLISH, [str(stream) for stream in streams], *arguments)


def _numbers(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)


def _forbidden(envelopes: Sequence[Envelope], queued: Sequence[Any]) -> dict[str, str]:
    """The messages that our user may not write, and later ones of their keys."""
    forbidden: dict[str, str] = {}
    held_keys: set[str] = set()
    for envelope, answer in zip(envelopes, queued, strict=True):
        if isinstance(answer, ResponseError) and code_of(answer) == "NOPERM":
            forbidden[envelope.id] = str(answer)
            if envelope.key is not None:
                held_keys.add(envelope.key)
        elif envelope.key in held_keys:
            forbidden[envelope.id] = OVERTAKING
    return forbidden
