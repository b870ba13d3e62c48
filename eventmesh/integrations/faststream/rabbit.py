"""The mesh of a FastStream app on RabbitMQ.

FastStream consumes and acknowledges. What a settlement means is decided by `Republisher`, as for
EventMesh's own consumers: it publishes copies of what is to be retried or dead-lettered over a
connection of the mesh's own, which is opened when the first is needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from faststream import AckPolicy, PublishCommand, StreamMessage
from faststream.rabbit import (
    Channel,
    ExchangeType,
    RabbitBroker,
    RabbitExchange,
    RabbitPublishCommand,
    RabbitQueue,
)
from faststream.rabbit.publisher import RabbitPublisher

from eventmesh.contracts.message import Message, identity_of
from eventmesh.integrations.faststream.intake import Arrival, Intake
from eventmesh.integrations.faststream.mesh import Mesh
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Done, Outcome
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.headers import attempt_and_deliveries
from eventmesh.transports.rabbitmq.settlement import Original, Republisher
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.rabbitmq.transport import AmqpTransport
from eventmesh.wire.cloudevents import from_headers


class RabbitMesh(Mesh["_RabbitIntake"]):
    """A service whose handlers run in the FastStream app of this broker."""

    schemes = ("amqp", "amqps")

    def __init__(self, service: Service, broker: RabbitBroker) -> None:
        super().__init__(service)
        self._broker = broker
        self._topology = Topology(service.settings.broker_prefix)
        broker.add_middleware(self)

    def subscribe(self, handler: Handler, function: Callable[..., Any], **options: Any) -> Any:
        intake = _RabbitIntake(self.service, handler)
        self._intakes.append(intake)
        subscriber = self._broker.subscriber(
            RabbitQueue(self._topology.queue(handler.subscription), declare=False),
            channel=Channel(prefetch_count=handler.concurrency),
            parser=intake.parse,
            decoder=intake.decode,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            no_reply=True,
            **options,
        )
        intake.serve(subscriber)
        return subscriber(function)

    def publisher(self, message: type[Message], **options: Any) -> RabbitPublisher:
        """A FastStream publisher of this message, which our service owns or sends. `options` are
        those of `broker.publisher`."""
        self.service.publisher(message)
        exchange = RabbitExchange(
            self._topology.exchange, type=ExchangeType.TOPIC, durable=True, declare=False
        )
        return self._broker.publisher(
            exchange=exchange,
            routing_key=self.destination(message),
            persist=True,
            **{"schema": message, **options},
        )

    def destination(self, message: type[Message]) -> str:
        return identity_of(message).name

    def is_addressed_by(self, command: PublishCommand) -> bool:
        return (
            isinstance(command, RabbitPublishCommand)
            and command.exchange.name == self._topology.exchange
        )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        settings = self.service.settings
        self.check_broker(settings.broker_url)
        options = settings.transport_options
        purpose = f"{options.prefix} settling"
        connection = BrokerConnection(settings.broker_url, purpose, options)
        connection.allow()
        for intake in self._intakes:
            intake.republisher = Republisher(
                connection,
                self._topology,
                intake.handler.subscription,
                self.service.clock,
                _acknowledge,
            )
        try:
            async with super().lifespan():
                transport = self.check_open()
                assert isinstance(transport, AmqpTransport)  # noqa: S101  # `schemes`
                with transport.consumed_by_others(
                    [intake.handler.subscription for intake in self._intakes]
                ):
                    yield
        finally:
            await connection.close()


class _RabbitIntake(Intake):
    """One subscription's queue. `republisher` is set while the mesh runs."""

    republisher: Republisher[StreamMessage[Any]]

    async def parse(self, incoming: Any, original: Callable[[Any], Any]) -> StreamMessage[Any]:
        """FastStream's parser: garbage comes out as an envelope without attributes."""
        message: StreamMessage[Any] = await original(incoming)
        attempt, deliveries = attempt_and_deliveries(message.headers)
        delivery = Delivery(
            from_headers(message.headers, message.content_type, message.body),
            attempt=attempt,
            deliveries=deliveries,
            token=message,
        )
        self.note(message, Arrival(self, delivery, incoming))
        return message

    async def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        if not isinstance(outcome, Done):
            message: StreamMessage[Any] = delivery.token
            original = Original(
                message.raw_message.properties, message.headers, message.body, delivery.attempt
            )
            await self.republisher.republish({message: (original, outcome)})
        return True


async def _acknowledge(messages: Collection[StreamMessage[Any]]) -> None:
    """Even if republishing then raises Unreachable: of these the broker has a copy."""
    for message in messages:
        await message.ack()
