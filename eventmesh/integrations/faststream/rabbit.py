"""The mesh of a FastStream app on RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faststream import AckPolicy, PublishCommand, StreamMessage
from faststream.rabbit import (
    Channel,
    ExchangeType,
    QueueType,
    RabbitBroker,
    RabbitExchange,
    RabbitPublishCommand,
    RabbitQueue,
)
from faststream.rabbit.publisher import RabbitPublisher

from eventmesh.contracts.message import Message, identity_of
from eventmesh.errors import Unreachable
from eventmesh.integrations.faststream.intake import Arrival, Intake
from eventmesh.integrations.faststream.mesh import Mesh
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import Service
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.rabbitmq.parcels import cut_headers
from eventmesh.transports.rabbitmq.topology import (
    ATTEMPT,
    CUT,
    Binding,
    Exchange,
    Queue,
    Topology,
    buried,
    count_in,
    delay_step,
    retried,
)
from eventmesh.wire.cloudevents import from_headers

_CONFIRMED = "Basic.Ack"


class RabbitMesh(Mesh):
    """A service whose handlers run in the FastStream app of this broker."""

    schemes = ("amqp", "amqps")

    def __init__(self, service: Service, broker: RabbitBroker) -> None:
        super().__init__(service)
        self._broker = broker
        self._topology = Topology(service.settings.broker_prefix)
        broker.add_middleware(self)

    def subscribe(self, handler: Handler, function: Callable[..., Any], **options: Any) -> Any:
        intake = _RabbitIntake(self.service, handler, self._broker, self._topology)
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


class _RabbitIntake(Intake):
    """One queue. What is to be retried or is dead is published again, and the original then
    acknowledged: a process that dies in between leaves two, which the inbox makes one."""

    def __init__(
        self, service: Service, handler: Handler, broker: RabbitBroker, topology: Topology
    ) -> None:
        super().__init__(service, handler)
        self._broker = broker
        self._topology = topology
        self._clock = service.clock

    async def parse(self, incoming: Any, original: Callable[[Any], Any]) -> StreamMessage[Any]:
        """FastStream's parser: garbage comes out as an envelope without attributes."""
        message: StreamMessage[Any] = await original(incoming)
        headers = message.headers
        delivery = Delivery(
            from_headers(headers, message.content_type, message.body),
            attempt=count_in(headers, ATTEMPT, 1),
            deliveries=1 + count_in(headers, "x-delivery-count", 0),
            token=message,
        )
        self.note(message, Arrival(self, delivery))
        return message

    async def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        subscription = self.handler.subscription
        came = delivery.token.headers
        if isinstance(outcome, RetryAfter) and CUT in cut_headers(retried(came, delivery.attempt)):
            outcome = Dead("RabbitMQ does not take it for a retry", "its headers are too large")
        match outcome:
            case Done():
                pass
            case RetryAfter(delay):
                headers = retried(came, delivery.attempt + 1)
                step = delay_step(delay)
                exchange = None if step is None else await self._delaying(step)
                queue = self._topology.queue(subscription)
                await self._publish(delivery.token, queue, headers, exchange)
            case Dead():
                headers = cut_headers(
                    buried(
                        came,
                        outcome,
                        attempts=delivery.attempt,
                        letter_id=self._clock.new_id(),
                        now=self._clock.now(),
                    )
                )
                await self._publish(delivery.token, self._topology.dead(subscription), headers)
        return True

    async def _publish(
        self,
        message: StreamMessage[Any],
        queue: str,
        headers: dict[str, Any],
        exchange: RabbitExchange | None = None,
    ) -> None:
        """Return once the broker has a copy of the message, with these headers, for this queue."""
        came = message.raw_message
        confirmation = await self._broker.publish(
            message.body,
            routing_key=queue,
            exchange=exchange,
            persist=True,
            headers=headers,
            content_type=came.content_type,
            content_encoding=came.content_encoding,
            priority=came.priority,
            correlation_id=came.correlation_id,
            reply_to=came.reply_to,
            message_id=came.message_id,
            timestamp=came.timestamp,
            message_type=came.type,
        )
        if getattr(confirmation, "name", None) != _CONFIRMED:
            raise Unreachable(
                f"RabbitMQ did not take a message for {queue}, so it will come again: see that the "
                f"queue exists and that the broker's channel has publisher confirms."
            )

    async def _delaying(self, step: int) -> RabbitExchange:
        """The exchange of what is to wait this many milliseconds."""
        made: RabbitExchange | None = None
        for piece in self._topology.for_delay(step):
            match piece:
                case Exchange(name):
                    made = RabbitExchange(name, type=ExchangeType.FANOUT, durable=True)
                    exchange = await self._broker.declare_exchange(made)
                case Queue(name):
                    arguments: Any = piece.arguments  # FastStream's type lacks some
                    queue = await self._broker.declare_queue(
                        RabbitQueue(name, queue_type=QueueType.QUORUM, arguments=arguments)
                    )
                case Binding():
                    await queue.bind(exchange)
        assert made is not None  # noqa: S101 - what the topology of a delay begins with
        return made
