"""A transport that is closed; a broker that is cut off, restarted, or loses its data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from eventmesh.errors import Unreachable
from eventmesh.testing.conformance.observing import (
    drain,
    drain_reconnecting,
    eventually,
    expect,
    expect_loss_noticed,
    receive,
    retry_until_reachable,
    running,
    same_ids,
)
from eventmesh.testing.conformance.rig import GuaranteeBroken, Rig, needed
from eventmesh.transports.base import Subscription, Transport, publish_or_raise
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.wire.envelope import Envelope

HOUR = 3600.0


async def closing_ends_a_waiting_receive(rig: Rig) -> None:
    """Closing a transport makes a waiting `receive` raise Unreachable. Its consumer can still be
    left, and unsettled deliveries go to others. Closing again has no effect."""
    subscription = rig.subscription("closed")
    sent = rig.envelopes(3)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            await receive(rig, consumer, 3)
            waiting = asyncio.ensure_future(consumer.receive(1))
            await asyncio.sleep(0.05)  # in which it begins to wait
            await transport.close()
            await _is_unreachable(rig, lambda: waiting, "a receive that waits")
        await transport.close()
    async with rig.open() as other:
        same_ids(await drain(rig, other, subscription, 3), sent)


async def a_closed_transport_is_unreachable(rig: Rig) -> None:
    """The methods of a closed transport raise Unreachable; `publish` returns a result with that
    error and leaves the batch unconfirmed. Nothing is done."""
    subscription = rig.subscription("asked")
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.close()
        [unsent] = rig.envelopes(1)
        result = await transport.publish([unsent])
        expect(result.error is not None, f"publish works, with its transport closed: {result}")
        expect(result.unconfirmed == {unsent.id}, result)
        await _is_unreachable(rig, lambda: transport.declare([subscription]), "declare")
        await _is_unreachable(rig, lambda: transport.stats(subscription), "stats")
    async with rig.open() as other:
        expect((await other.stats(subscription)).ready == 0, "it was published nevertheless")


async def a_cut_connection_is_replaced(rig: Rig) -> None:
    """A transport whose connections were cut raises Unreachable and then reconnects. Nothing that
    was published, or about to be settled, is lost."""
    cut = needed(rig.cut, "cut")
    subscription = rig.subscription("cut")
    sent, later = rig.envelopes(6), rig.envelopes(3)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        await drain(rig, transport, subscription, 2, prefetch=2)
        async with transport.consume(subscription, prefetch=10) as consumer:
            await receive(rig, consumer, 4)
            await cut()
            await retry_until_reachable(rig, lambda: publish_or_raise(transport, later))
            await expect_loss_noticed(rig, consumer)
        same_ids(await drain_reconnecting(rig, transport, subscription, 7), [*sent[2:], *later])


async def a_restart_loses_nothing(rig: Rig) -> None:
    """Messages that were published, delayed or dead before a restart still are after it; unsettled
    deliveries come again, and the transport goes on."""
    restart = needed(rig.restart, "restart")
    subscription = rig.subscription("restarted")
    sent, later = rig.envelopes(7), rig.envelopes(3)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        await _settle_first_in_every_way(rig, transport, subscription)
        async with transport.consume(subscription, prefetch=2) as consumer:
            await receive(rig, consumer, 2)
            await restart()
            await retry_until_reachable(rig, lambda: publish_or_raise(transport, later))
        expected = [sent[1], *sent[4:], *later]
        got = await drain_reconnecting(rig, transport, subscription, len(expected))
        same_ids(got, expected)
        attempts = {delivery.envelope.id: delivery.attempt for delivery in got}
        expect(attempts[sent[1].id] == 2, "the retry is a second attempt")
        stats = await transport.stats(subscription)
        expect(stats.delayed in (1, None), stats)
        [letter] = await transport.dead_letters(subscription, limit=10)
        expect((letter.envelope, letter.reason, letter.error) == (sent[3], "no", "why"), letter)


async def _settle_first_in_every_way(
    rig: Rig, transport: Transport, subscription: Subscription
) -> None:
    """Settle four messages: done, retried soon, retried much later, and dead. When this returns,
    the broker has processed all of it, because the consumer has left."""
    async with transport.consume(subscription, prefetch=4) as consumer:
        done, soon, late, dead = await receive(rig, consumer, 4)
        await consumer.settle(
            [
                (done, DONE),
                (soon, RetryAfter(0.5)),
                (late, RetryAfter(HOUR)),
                (dead, Dead("no", "why")),
            ]
        )


async def topology_is_declared_again_after_data_loss(rig: Rig) -> None:
    """After a broker lost its data, transports that were connected before can publish and consume
    again. Messages that are published before their subscriptions are declared again are kept for
    them."""
    lose_data = needed(rig.lose_data, "lose_data")
    kept = [rig.subscription(each, "kept") for each in ("one", "two")]
    # These may be declared again at any moment, one a little after the other.
    followed = [rig.subscription(each, "followed") for each in ("three", "four")]
    early, late = (
        rig.envelopes(4, "kept"),
        [*rig.envelopes(4, "kept"), *rig.envelopes(4, "followed")],
    )
    async with rig.open() as publisher, rig.open() as transport:
        async with rig.open() as first:
            await first.declare(kept)
        await transport.declare(followed)
        await publish_or_raise(publisher, rig.envelopes(5, "followed"))
        async with transport.consume(followed[0], prefetch=10) as consumer:
            await receive(rig, consumer, 5)
            await lose_data()
            await retry_until_reachable(rig, lambda: publish_or_raise(publisher, early))
            await expect_loss_noticed(rig, consumer)
        await retry_until_reachable(rig, lambda: transport.declare([*kept, *followed]))
        await retry_until_reachable(rig, lambda: publish_or_raise(publisher, late))
        for subscriptions, sent in ((kept, [*early, *late[:4]]), (followed, late[4:])):
            for each in subscriptions:
                same_ids(await drain_reconnecting(rig, transport, each, len(sent)), sent)


async def deleted_topology_is_restored(rig: Rig) -> None:
    """If somebody deletes the routes to subscriptions while publishers and consumers run, the
    transports restore them unasked, and every message reaches every subscription."""
    lose_topology = needed(rig.lose_topology, "lose_topology")
    one, two = rig.subscription("one"), rig.subscription("two")
    early, late = rig.envelopes(4), rig.envelopes(4)
    seen: dict[Subscription, set[str]] = {one: set(), two: set()}

    async def consume(transport: Transport, subscription: Subscription) -> None:
        async def consume_once() -> None:
            async with transport.consume(subscription, prefetch=10) as consumer:
                while True:
                    got = await consumer.receive(10)
                    await consumer.settle([(delivery, DONE) for delivery in got])
                    seen[subscription].update(delivery.envelope.id for delivery in got)

        await retry_until_reachable(rig, consume_once)

    def have(envelopes: Sequence[Envelope]) -> Callable[[], bool]:
        return lambda: all({each.id for each in envelopes} <= ids for ids in seen.values())

    async with rig.open() as publisher, rig.open() as first, rig.open() as second:
        await first.declare([one])
        await second.declare([two])
        async with running(consume(first, one), consume(second, two)):
            await publish_or_raise(publisher, early)
            await eventually(rig, have(early), "all comes to both")
            await lose_topology([one, two])
            await retry_until_reachable(rig, lambda: publish_or_raise(publisher, late))
            await eventually(rig, have(late), "all that was published after the loss comes to both")


async def _is_unreachable(rig: Rig, call: Callable[[], Awaitable[object]], what: str) -> None:
    """GuaranteeBroken unless this call raises Unreachable in time."""
    try:
        async with asyncio.timeout(rig.patience):
            await call()
    except Unreachable:
        return
    except TimeoutError:
        raise GuaranteeBroken(f"{what} waits, with its transport closed") from None
    raise GuaranteeBroken(f"{what} works, with its transport closed")
