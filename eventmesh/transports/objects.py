"""What EventMesh makes on a broker for subscriptions and published messages, by name.

It follows from the names alone, so no server is needed. A client library is not loaded either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from eventmesh.transports.base import Subscription


@dataclass(frozen=True, slots=True, order=True)
class BrokerObject:
    """A queue, stream, exchange, binding or table."""

    kind: str
    name: str
    purpose: str


def broker_objects(
    url: str, prefix: str, subscriptions: Sequence[Subscription], published: Iterable[str]
) -> list[BrokerObject]:
    """The objects on the broker of this URL, sorted; none for a broker in memory."""
    scheme = urlsplit(url).scheme
    messages = {*published, *(name for each in subscriptions for name in each.messages)}
    if scheme.startswith("redis"):
        return sorted(set(_redis(url, prefix, subscriptions, messages)))
    if scheme in ("amqp", "amqps"):
        return sorted(set(_rabbitmq(prefix, subscriptions, published)))
    if scheme == "sqlite":
        return sorted(_sqlite(subscriptions))
    return []


def _redis(
    url: str, prefix: str, subscriptions: Sequence[Subscription], messages: Iterable[str]
) -> Iterable[BrokerObject]:
    """Of a prefix that is spread over several slots, what is in all of them if the URL says how
    many, else what is in the first."""
    from eventmesh.transports.redis.keys import MOST_SLOTS, layouts

    split = urlsplit(url)
    slots = dict(parse_qsl(split.query)).get("slots", "")
    number = min(int(slots), MOST_SLOTS) if slots.isdigit() else 1
    first, *others = layouts(prefix, number, one_slot="+cluster" in split.scheme)
    yield BrokerObject("hash", first.record, "over how many slots the prefix is spread")
    for layout in (first, *others):
        for message in messages:
            yield BrokerObject("stream", layout.stream(message), f"messages {message}")
        for subscription in subscriptions:
            keys = layout.of(subscription)
            for stream in keys.streams:
                yield BrokerObject("consumer group", f"{stream} {keys.group}", "deliveries")
            yield BrokerObject("stream", keys.retry, "retries that are due")
            yield BrokerObject("sorted set", keys.delayed, "retries that are not due")
            yield BrokerObject("stream", keys.dead, "dead letters")


def _rabbitmq(
    prefix: str, subscriptions: Sequence[Subscription], published: Iterable[str]
) -> Iterable[BrokerObject]:
    from eventmesh.transports.rabbitmq.headers import BUCKET_PREFIX, bucket_key
    from eventmesh.transports.rabbitmq.topology import (
        Binding,
        Exchange,
        ExchangeBinding,
        Queue,
        Topology,
    )

    topology = Topology(prefix)
    entities = topology.for_publishing(published)
    for subscription in subscriptions:
        entities += topology.for_subscription(subscription)
    for entity in entities:
        match entity:
            case Exchange(name, kind, alternate):
                rest = f"; what it cannot route goes to {alternate}" if alternate else ""
                yield BrokerObject("exchange", name, f"{kind}{rest}")
            case Queue(name, one_consumer=one_consumer):
                kind = "quorum, one consumer at a time" if one_consumer else "quorum"
                yield BrokerObject("queue", name, kind)
            case Binding(_, exchange, key) if key.startswith(BUCKET_PREFIX):
                if key == bucket_key(0):
                    yield BrokerObject(
                        "binding", f"{exchange} -> its partitions", f"{key} and all other buckets"
                    )
            case Binding(queue, exchange, key):
                yield BrokerObject("binding", f"{exchange} -> {queue}", key or "every message")
            case ExchangeBinding(exchange, source, key):
                yield BrokerObject("binding", f"{source} -> {exchange}", key)
    delays = f"{topology.delay_prefix}<milliseconds>"
    yield BrokerObject("exchange", delays, "fanout; made when a retry first waits so long")
    yield BrokerObject("queue", delays, "quorum; retries that are not due, of all subscriptions")


def _sqlite(subscriptions: Sequence[Subscription]) -> Iterable[BrokerObject]:
    for subscription in subscriptions:
        for message in subscription.messages:
            yield BrokerObject("binding", f"{message} -> {subscription.name}", "row of the file")
