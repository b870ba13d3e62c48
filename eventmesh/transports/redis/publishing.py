"""Publishing to Redis: a batch in one step, in which nothing passes a refused message of its key.

A transaction does not end with a command that fails: what follows is done all the same. That is
harmless where a key's messages go to one stream, because what Redis refuses there (its key holds
something else, it has no ids left, our user may not write it) it refuses for all of them. Where
they go to several, a script adds them, and leaves out what would overtake. It costs Redis half as
much again (measured: 7 µs a message for 4.5), so that it is used there only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from redis.exceptions import ResponseError

from eventmesh.errors import Unreachable
from eventmesh.transports.base import ALL_CONFIRMED, PublishResult
from eventmesh.transports.redis import scripts
from eventmesh.transports.redis.connection import Redis, code_of
from eventmesh.transports.redis.entries import flat
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.scripts import Command, call
from eventmesh.wire.cloudevents import to_fields
from eventmesh.wire.envelope import Envelope

REPLICA_TIMEOUT = 5.0
"""Seconds in which replicas must have taken a message, where the URL asks for that."""

OVERTAKING = "an earlier message of its key was refused"


class Publisher:
    """Adds messages to their streams."""

    def __init__(self, redis: Redis, layout: Layout, wait_replicas: int) -> None:
        self._redis = redis
        self._layout = layout
        self._wait_replicas = wait_replicas

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        """Store all of these but what Redis rejects, and what would overtake a rejected message of
        its key."""
        rejected: dict[str, str] = {}
        while waiting := [each for each in envelopes if each.id not in rejected]:
            additions: list[Command] = [
                ("XADD", self._layout.stream(each.name), "*", *flat(to_fields(each).items()))
                for each in waiting
            ]
            # Most batches have one stream, which is quickly seen.
            several = len({addition[1] for addition in additions}) > 1
            store = self._script if several and several_names_of_a_key(waiting) else self._transact
            try:
                newly_rejected, stored = await store(waiting, additions)
            except Unreachable as error:
                return PublishResult.interrupted(waiting, error, rejected)
            rejected |= newly_rejected
            if stored:
                break
        return PublishResult(rejected) if rejected else ALL_CONFIRMED

    async def _transact(
        self, envelopes: Sequence[Envelope], additions: Sequence[Command]
    ) -> tuple[dict[str, str], bool]:
        """Add all of these in a transaction. Returns those that Redis refused, and whether it
        stored the others: where our user may not write some of the streams, it stores none."""
        answers = await self._redis.attempt(
            [("MULTI",), *additions, ("EXEC",), *self._confirmation()]
        )
        queued, executed = answers[: len(additions) + 1], answers[len(additions) + 1]
        if isinstance(executed, ResponseError):
            if forbidden := _forbidden(envelopes, queued[1:]):
                return forbidden, False
            causes = [answer for answer in queued if isinstance(answer, ResponseError)]
            raise self._redis.refusal((causes or [executed])[0])
        self._check_replicas(answers[len(additions) + 2 :])
        refused = {
            envelope.id: str(answer)
            for envelope, answer in zip(envelopes, executed, strict=True)
            if isinstance(answer, ResponseError)
        }
        return refused, True

    async def _script(
        self, envelopes: Sequence[Envelope], additions: Sequence[Command]
    ) -> tuple[dict[str, str], bool]:
        """As `_transact`, but what would overtake is left out, too, and returned."""
        script = scripted([each.key for each in envelopes], additions)
        answer, *confirmed = await self._redis.attempt([script, *self._confirmation()])
        if isinstance(answer, ResponseError):
            if code_of(answer) == "NOPERM" and (
                forbidden := await self._find_forbidden(envelopes, additions)
            ):
                return forbidden, False
            raise self._redis.refusal(answer)
        self._check_replicas(confirmed)
        refused = {envelopes[at - 1].id: error.decode() or OVERTAKING for at, error in answer}
        return refused, True

    async def _find_forbidden(
        self, envelopes: Sequence[Envelope], additions: Sequence[Command]
    ) -> dict[str, str]:
        """Those that our user may not write, and what would overtake: Redis tells of the streams
        of a script that one of them is forbidden, and not which. Nothing is stored."""
        # An EXEC with an argument is an error, and after an error EXEC does nothing.
        ending: list[Command] = [("EXEC", "nothing"), ("EXEC",)]
        answers = await self._redis.attempt([("MULTI",), *additions, *ending])
        return _forbidden(envelopes, answers[1 : -len(ending)])

    def _confirmation(self) -> list[Command]:
        """What makes sure that replicas have it, where that is asked for."""
        if not self._wait_replicas:
            return []
        return [("WAIT", self._wait_replicas, int(REPLICA_TIMEOUT * 1000))]

    def _check_replicas(self, answers: Collection[Any]) -> None:
        for count in answers:
            if isinstance(count, ResponseError):
                raise self._redis.refusal(count)
            if count < self._wait_replicas:
                raise Unreachable(
                    f"Redis has stored messages, but {count} instead of {self._wait_replicas} of "
                    f"its replicas have confirmed them in {REPLICA_TIMEOUT:.0f} s. Start the "
                    f"replicas, or ask for fewer by wait_replicas in EVENTMESH_BROKER_URL."
                )


def several_names_of_a_key(envelopes: Sequence[Envelope]) -> bool:
    """Whether any key has messages of several names, which go to several streams."""
    name_of: dict[str, str] = {}
    return any(
        name_of.setdefault(key, each.name) != each.name
        for each in envelopes
        if (key := each.key) is not None
    )


def scripted(keys: Sequence[str | None], additions: Sequence[Command]) -> Command:
    """The script that does these additions, of messages with these keys."""
    streams: dict[str | bytes | int, int] = {}
    numbers: dict[str | None, int] = {None: 0}
    arguments: list[str | bytes | int] = []
    for key, addition in zip(keys, additions, strict=True):
        stream = streams.setdefault(addition[1], len(streams) + 1)
        fields = addition[3:]
        arguments += (stream, numbers.setdefault(key, len(numbers)), len(fields))
        arguments += fields
    return call(scripts.PUBLISH, [str(stream) for stream in streams], *arguments)


def _forbidden(envelopes: Sequence[Envelope], queued: Sequence[Any]) -> dict[str, str]:
    """Those that our user may not write, and what would overtake an earlier one of its key."""
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
