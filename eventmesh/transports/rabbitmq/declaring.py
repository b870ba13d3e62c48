"""Declaring exchanges, queues and bindings over a channel. What exists as declared stays as it
is."""

from __future__ import annotations

from collections.abc import Sequence

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp import commands
from pamqp.base import Frame
from pamqp.frame import marshal

from eventmesh.errors import UsageError
from eventmesh.transports.rabbitmq.topology import Binding, Entity, Exchange, ExchangeBinding, Queue


async def declare(channel: Channel, entity: Entity) -> None:
    """Declare one entity. UsageError if it exists with other arguments."""
    try:
        await channel.rpc(_method(entity, nowait=False))
    except ChannelPreconditionFailed as error:
        raise _exists_differently(error, [entity]) from error


async def declare_all(channel: Channel, entities: Sequence[Entity]) -> None:
    """Declare all of these, most of which exist, by one write and one answer. UsageError if one of
    them exists with other arguments."""
    methods = b"".join(marshal(_method(each, nowait=True), channel.number) for each in entities)
    await channel.write_queue.put(ChannelFrame(methods, False))
    try:
        # RabbitMQ works through a channel in order, so its answer to this follows the last one.
        await channel.basic_qos(prefetch_count=1)
    except ChannelPreconditionFailed as error:
        raise _exists_differently(error, entities) from error


def _method(entity: Entity, *, nowait: bool) -> Frame:
    """With `nowait`, RabbitMQ answers only if it fails, by closing the channel."""
    match entity:
        case Exchange(name, kind):
            return commands.Exchange.Declare(
                exchange=name,
                exchange_type=kind,
                durable=True,
                nowait=nowait,
                arguments=entity.arguments,
            )
        case Queue(name):
            return commands.Queue.Declare(
                queue=name, durable=True, nowait=nowait, arguments=entity.arguments
            )
        case Binding(queue, exchange, routing_key):
            return commands.Queue.Bind(
                queue=queue, exchange=exchange, routing_key=routing_key, nowait=nowait
            )
        case ExchangeBinding(exchange, source, routing_key):
            return commands.Exchange.Bind(
                destination=exchange, source=source, routing_key=routing_key, nowait=nowait
            )


def _exists_differently(error: BaseException, entities: Sequence[Entity]) -> UsageError:
    for entity in entities:
        match entity:
            case Exchange(name, if_different=hint) if hint and f"'{name}'" in str(error):
                return UsageError(hint)
    return UsageError(
        f"RabbitMQ has an exchange or queue with other arguments than EventMesh needs: {error}. "
        f"Delete it once it is empty, or set another EVENTMESH_BROKER_PREFIX."
    )
