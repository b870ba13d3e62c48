"""What OpenTelemetry is told of messages on their way, checked against its conventions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import StatusCode
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from eventmesh import Command, Event, Reject, Retry, Saga, Service, Settings, Transaction, constant
from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.observability.logs import _with_trace
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.transports.base import PublishResult, Transport, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.conftest import TIMEOUT_SECONDS
from tests.support.traced import Traced, ids, linked

SOON = Retry(attempts=2, backoff=constant("10ms"))

pytestmark = pytest.mark.filterwarnings("ignore:You should use:DeprecationWarning")


class Do(Command, name="shop.do", version=1, key="key"):
    number: int
    key: str = "k"


class Done(Event, name="shop.done", version=1, key="key"):
    number: int
    key: str = "k"


class Heard(Event, name="shop.heard", version=1):
    number: int


class Progress(BaseModel):
    number: int


@dataclass
class Shop:
    """A traced service on one broker. `heard` are the numbers that came to the end of the way."""

    service: Service
    traced: Traced
    settings: Settings
    transport: Transport
    heard: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """While a worker runs."""
        stopping = asyncio.Event()
        worker = Worker([self.service], self.transport, self.settings, self.service.clock)
        running = asyncio.ensure_future(worker.run(stopping))
        try:
            yield
        finally:
            stopping.set()
            await asyncio.wait_for(running, TIMEOUT_SECONDS)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():  # noqa: ASYNC110  # of what another library keeps
                await asyncio.sleep(0.01)

    async def send(self, *numbers: int) -> None:
        """Send commands from outside of any handler, in one transaction."""
        async with self.service.transaction() as tx:
            for number in numbers:
                tx.send(Do(number=number, key=str(number)))


Open = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def open_shop(durable_url: Callable[[str], str], sqlite_url: str) -> AsyncIterator[Open]:
    opened: list[tuple[Traced, Any]] = []

    async def make(service: Service, broker: str = "memory", **options: Any) -> Shop:
        sampler: Sampler | None = options.pop("sampler", None)
        traced = Traced() if sampler is None else Traced(sampler)
        settings = Settings(
            broker_url="memory://" if broker == "memory" else durable_url(broker),
            broker_prefix=f"test-{uuid.uuid4().hex[:12]}",
            database_urls={"shop": sqlite_url},
            **options,
        )
        service.configure(settings)
        traced.trace(service)
        opening = open_transport(settings.broker_url, SystemClock(), settings.transport_options)
        transport = await opening.__aenter__()
        opened.append((traced, opening))
        await transport.declare([handler.subscription for handler in service.worked])
        return Shop(service, traced, settings, transport)

    yield make
    for traced, opening in opened:
        await opening.__aexit__(None, None, None)
        traced.close()


def forwarding(heard: list[int]) -> Service:
    """A service that answers each command by an event, to which it listens itself."""
    service = Service("shop")
    service.publisher(Do)

    @service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> Done:
        return Done(number=command.number, key=command.key)

    @service.subscriber(Done)
    async def hear(event: Done) -> None:
        heard.append(event.number)

    return service


def outcomes(traced: Traced) -> list[Any]:
    """What the settle spans, or their links, say became of the messages."""
    found: list[Any] = []
    for span in traced.spans("settle"):
        of_all = span.attributes.get("eventmesh.outcome")
        if of_all is None:
            found += [link.attributes["eventmesh.outcome"] for link in span.links]
        else:
            found += [of_all] * span.attributes.get("messaging.batch.message_count", 1)
    return found


def by_attribute(spans: Sequence[ReadableSpan], name: str) -> dict[Any, ReadableSpan]:
    return {(span.attributes or {}).get(name): span for span in spans}


@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis", "amqp"])
async def test_spans_and_metrics_follow_the_conventions_on_every_broker(
    broker: str, open_shop: Open
) -> None:
    heard: list[int] = []
    shop = await open_shop(forwarding(heard), broker)
    numbers = list(range(30))
    await shop.send(*numbers)
    async with shop.working():
        await shop.until(lambda: sorted(heard) == numbers)
    traced = shop.traced
    assert traced.problems() == []
    system = {"amqp": "rabbitmq"}.get(broker, broker)
    assert {span.attributes["messaging.system"] for span in traced.spans()} == {system}
    prefix = shop.settings.broker_prefix
    published = {"redis": f"{prefix}:stream:shop.do", "amqp": f"{prefix}:shop.do"}
    destination = published.get(broker, "shop.do")
    consumed = f"{destination}:{prefix}.queue.shop.do" if broker == "amqp" else destination
    created = traced.spans(f"create {destination}")
    processed = traced.spans(f"process {consumed}")
    assert len(created) == len(processed) == 30
    for span in processed:
        assert linked(span) <= {ids(each) for each in created}
        assert span.attributes["eventmesh.attempt"] == 1
        assert span.attributes["eventmesh.group.wait"] >= 0
        assert span.attributes["messaging.destination.subscription.name"] == "shop.do"
    [sent, *_] = traced.spans(f"send {destination}")
    assert sent.attributes["messaging.batch.message_count"] == 30
    assert linked(sent) == {ids(span) for span in created}
    assert all(link.attributes["eventmesh.outbox.time"] > 0 for link in sent.links)
    if broker in ("redis", "amqp"):
        assert sent.attributes["server.address"]
        assert sent.attributes["server.port"] > 0
    peers = {
        (span.attributes.get("network.peer.address"), span.attributes.get("network.peer.port"))
        for operation in ("send", "receive", "settle")
        for span in traced.spans(operation)
    }
    [(address, port)] = peers
    if broker in ("redis", "amqp"):
        assert ip_address(address)
        assert port == sent.attributes["server.port"]
    else:
        assert (address, port) == (None, None)
    by_name = ("messaging.destination.name", "error.type")
    assert traced.counts("messaging.client.sent.messages", *by_name)[destination, None] == 30
    assert traced.counts("messaging.client.consumed.messages", *by_name)[consumed, None] == 30
    assert traced.counts("messaging.process.duration", *by_name)[consumed, None] == 30
    operations = traced.counts("messaging.client.operation.duration", "messaging.operation.name")
    assert {name for (name,) in operations} == {"send", "receive", "settle"}


async def test_what_a_handler_publishes_is_created_below_its_process_span(
    open_shop: Open,
) -> None:
    heard: list[int] = []
    shop = await open_shop(forwarding(heard))
    async with shop.working():
        await shop.send(1)
        await shop.until(lambda: heard)
    traced = shop.traced
    first, event = by_attribute(traced.spans("create"), "cloudevents.event_type").values()
    do, hear = by_attribute(traced.spans("process"), "cloudevents.event_type").values()
    assert linked(do) == {ids(first)}
    assert event.parent is not None
    assert (event.parent.trace_id, event.parent.span_id) == ids(do)
    assert linked(hear) == {ids(event)}
    assert len({span.context.trace_id for span in (first, do, hear)}) == 3
    received = {ids(span) for span in traced.spans("receive")}
    settled = traced.spans("settle")
    for span in (do, hear, *settled):
        assert (span.parent.trace_id, span.parent.span_id) in received
    assert [span.attributes["eventmesh.outcome"] for span in settled] == ["done", "done"]
    assert do.attributes["messaging.message.id"] == first.attributes["messaging.message.id"]


@pytest.mark.parametrize("parents", ["commands", "all"])
async def test_messages_continue_the_trace_of_their_creation_if_the_setting_says_so(
    parents: str, open_shop: Open
) -> None:
    heard: list[int] = []
    shop = await open_shop(forwarding(heard), trace_parents=parents)
    async with shop.working():
        await shop.send(1)
        await shop.until(lambda: heard)
    created = by_attribute(shop.traced.spans("create"), "cloudevents.event_type")
    processed = by_attribute(shop.traced.spans("process"), "cloudevents.event_type")
    do, hear = processed["shop.do"], processed["shop.done"]
    assert (do.parent.trace_id, do.parent.span_id) == ids(created["shop.do"])
    received = {ids(span) for span in shop.traced.spans("receive")}
    assert linked(do) & received, "the receive span is linked instead"
    traces = {span.context.trace_id for span in (*created.values(), *processed.values())}
    assert len(traces) == {"commands": 2, "all": 1}[parents]
    assert linked(hear) >= {ids(created["shop.done"])}
    assert shop.traced.problems() == []


@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis", "amqp"])
async def test_a_failed_message_is_retried_and_dead_lettered_with_the_context_of_its_creation(
    broker: str, open_shop: Open
) -> None:
    service = Service("shop")
    service.publisher(Do)

    @service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        raise ValueError("no such branch at redis://user:secret@host")

    shop = await open_shop(service, broker)
    [subscription] = [handler.subscription for handler in service.worked]
    async with shop.working():
        await shop.send(1)
        await shop.until(lambda: len(shop.traced.spans("settle")) == 2)
        [letter] = await shop.transport.dead_letters(subscription, limit=1)
        await shop.transport.replay(subscription, [letter.id])
        await shop.until(lambda: len(shop.traced.spans("settle")) == 4)
    [created] = shop.traced.spans("create")
    attempts = shop.traced.spans("process")
    assert [span.attributes["eventmesh.attempt"] for span in attempts] == [1, 2, 1, 2]
    for span in attempts:
        assert linked(span) == {ids(created)}
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "ValueError"
        assert span.attributes["eventmesh.transaction.rolled_back"] is True
        assert "secret" not in str(span.status.description)
    assert outcomes(shop.traced) == ["retried", "dead", "retried", "dead"]
    events = shop.traced.events()
    assert [event.log_record.event_name for event in events] == ["messaging.process.exception"] * 4
    for event, span in zip(events, attempts, strict=True):
        assert (event.log_record.trace_id, event.log_record.span_id) == ids(span)
        assert event.log_record.attributes["exception.message"].startswith("no such branch")
        assert "in do" in event.log_record.attributes["exception.stacktrace"]
        assert "secret" not in str(event.log_record.attributes)
    assert shop.traced.problems() == []
    durations = shop.traced.counts("messaging.process.duration", "error.type")
    assert durations == {("ValueError",): 4}


async def test_what_shared_a_transaction_with_a_failure_is_marked_as_rolled_back(
    open_shop: Open,
) -> None:
    service = Service("shop")
    service.publisher(Do)

    @service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        if command.number == 9:
            raise Reject("no such number")

    shop = await open_shop(service)
    await shop.send(*range(10))
    async with shop.working():
        await shop.until(lambda: "dead" in outcomes(shop.traced))
    rolled_back = [
        span
        for span in shop.traced.spans("process")
        if span.attributes.get("eventmesh.transaction.rolled_back")
    ]
    [failed] = [span for span in rolled_back if span.status.status_code is StatusCode.ERROR]
    assert failed.attributes["error.type"] == "eventmesh.errors.Reject"
    assert len(rolled_back) == len(shop.traced.spans("process")) - 9
    assert shop.traced.problems() == []


async def test_a_batch_handler_has_one_process_span_with_links_to_all(open_shop: Open) -> None:
    service = Service("shop")
    service.publisher(Do)
    service.publisher(Done)
    calls: list[int] = []

    @service.subscriber(Do)
    async def do(commands: list[Do], tx: Transaction) -> None:
        calls.append(len(commands))
        for command in commands:
            tx.publish(Done(number=command.number), cause=command)

    shop = await open_shop(service, trace_parents="all")
    await shop.send(*range(20))
    async with shop.working():
        await shop.until(lambda: sum(calls) == 20)
        await shop.until(lambda: len(shop.traced.spans("create shop.done")) == 20)
    created = {ids(span) for span in shop.traced.spans("create shop.do")}
    batches = [
        span
        for span in shop.traced.spans("process")
        if "messaging.batch.message_count" in span.attributes
    ]
    assert batches
    for batch in batches:
        assert len(batch.links) == batch.attributes["messaging.batch.message_count"]
        assert linked(batch) <= created
    effects = shop.traced.spans("create shop.done")
    parents = {(span.parent.trace_id, span.parent.span_id) for span in effects if span.parent}
    assert parents - {ids(span) for span in shop.traced.spans("process")} <= created
    assert len({span.context.trace_id for span in effects}) == 20
    assert shop.traced.problems() == []


async def test_a_delayed_message_begins_a_new_trace_that_is_linked(open_shop: Open) -> None:
    service = Service("shop")
    service.publisher(Do)
    service.publisher(Heard)

    @service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.publish(Heard(number=1), delay=3600)

    shop = await open_shop(service, trace_parents="all")
    async with shop.working():
        await shop.send(1)
        await shop.until(lambda: shop.traced.spans("create shop.heard"))
        await shop.until(lambda: shop.traced.spans("process"))
    [later], [process] = shop.traced.spans("create shop.heard"), shop.traced.spans("process")
    assert later.parent is None
    assert linked(later) == {ids(process)}
    assert later.attributes["eventmesh.delay"] == 3600
    assert shop.traced.problems() == []


async def test_a_message_that_cannot_be_read_has_a_failed_process_span(open_shop: Open) -> None:
    shop = await open_shop(forwarding([]))
    broken = Envelope(
        {**seal(Do(number=1), source="t", clock=SystemClock()).attributes, "traceparent": "what?"},
        b"{",
    )
    await publish_or_raise(shop.transport, [broken])
    async with shop.working():
        await shop.until(lambda: shop.traced.spans("settle"))
    [span] = shop.traced.spans("process")
    assert span.attributes["error.type"] == "not_processed"
    assert span.attributes["messaging.message.id"] == broken.id
    assert not span.links
    [settled] = shop.traced.spans("settle")
    assert settled.attributes["eventmesh.outcome"] == "dead"
    assert shop.traced.problems() == []


async def test_what_the_sampler_leaves_out_is_still_passed_on_and_counted(
    open_shop: Open,
) -> None:
    heard: list[int] = []
    service = forwarding(heard)
    contexts: list[str] = []

    @service.subscriber(Done, name="look")
    async def look(event: Done, envelope: Envelope) -> None:
        contexts.append(envelope.attributes["traceparent"])

    shop = await open_shop(service, sampler=ParentBased(ALWAYS_OFF))
    await shop.send(*range(10))
    async with shop.working():
        await shop.until(lambda: len(heard) == len(contexts) == 10)
    assert shop.traced.spans() == []
    assert not any(int(context[-2:], 16) & 1 for context in contexts)
    assert shop.traced.counts("messaging.client.consumed.messages") == {(): 30}
    assert shop.traced.counts("messaging.process.duration") == {(): 30}


async def test_log_lines_name_the_span_that_they_were_written_in(open_shop: Open) -> None:
    service = Service("shop")
    service.publisher(Do)

    @service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        structlog.get_logger().info("doing")
        raise ValueError("no")

    shop = await open_shop(service)
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        async with shop.working():
            await shop.send(1)
            await shop.until(lambda: len(shop.traced.spans("settle")) == 2)
    processed = [
        {"trace_id": f"{trace:032x}", "span_id": f"{span:016x}"}
        for trace, span in map(ids, shop.traced.spans("process"))
    ]
    for event, expected in (
        ("doing", processed),
        ("message will be retried", processed[:1]),
        ("message dead-lettered", processed[1:]),
    ):
        found = [
            {name: line[name] for name in ("trace_id", "span_id")}
            for line in lines
            if line["event"] == event
        ]
        assert found == expected, event
    assert not any("trace_id" in line for line in lines if line["event"] == "worker stopped")


@pytest.mark.parametrize("parents", ["none", "commands"])
async def test_the_messages_of_a_saga_name_it_and_are_one_trace_if_the_setting_says_so(
    parents: str, open_shop: Open
) -> None:
    service = Service("shop")
    done = service.publisher(Done)
    saga = Saga("shop.remember", Progress)

    @saga.starts
    def begin(event: Done) -> Progress:
        return Progress(number=event.number)

    @saga.step(ok=Heard, timeout="1m", no_undo="it only hears")
    def hear(state: Progress) -> Do:
        return Do(number=state.number)

    saga.flow(hear)
    service.include(saga)

    @service.subscriber(Do)
    async def do(command: Do) -> Heard:
        return Heard(number=command.number)

    shop = await open_shop(service, trace_parents=parents)
    async with shop.working():
        await done.publish(Done(number=1))
        await shop.until(lambda: len(shop.traced.spans("process")) == 3)
    created = by_attribute(shop.traced.spans("create"), "cloudevents.event_type")
    processed = by_attribute(shop.traced.spans("process"), "cloudevents.event_type")
    assert set(processed) == {"shop.done", "shop.do", "shop.heard"}
    for span in (created["shop.do"], processed["shop.do"], processed["shop.heard"]):
        assert span.attributes["eventmesh.saga.name"] == "shop.remember"
        assert span.attributes["eventmesh.saga.step"].startswith("hear")
        assert span.attributes["eventmesh.saga.id"] in str(
            {each.attributes["messaging.message.id"] for each in created.values()}
        )
    assert linked(processed["shop.heard"]) >= {ids(created["shop.heard"])}
    time_out = created["shop.remember.signal"]
    assert time_out.attributes["eventmesh.delay"] == 60
    assert time_out.parent is None
    story = [processed["shop.done"], *(processed[name] for name in ("shop.do", "shop.heard"))]
    traces = {span.context.trace_id for span in story}
    assert len(traces) == {"none": 3, "commands": 1}[parents]
    assert shop.traced.problems() == []


async def test_a_batch_that_the_broker_does_not_take_is_a_failed_send_span(
    open_shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    shop = await open_shop(forwarding(heard))
    publish, answers = shop.transport.publish, ["lost", "rejected"]

    async def unwilling(envelopes: Sequence[Envelope]) -> PublishResult:
        match answers.pop(0) if answers else "":
            case "lost":
                return PublishResult.interrupted(envelopes, Unreachable("the broker is away"))
            case "rejected":
                return PublishResult({envelopes[0].id: "the queue is full"})
            case _:
                return await publish(envelopes)

    monkeypatch.setattr(shop.transport, "publish", unwilling)
    await shop.send(1)
    async with shop.working():
        await shop.until(lambda: heard)
    lost, rejected, taken, *_ = shop.traced.spans("send")
    assert lost.attributes["error.type"] == "eventmesh.errors.Unreachable"
    assert rejected.attributes["error.type"] == "rejected"
    assert rejected.status.description == "the queue is full"
    assert taken.status.status_code is StatusCode.UNSET
    by_error = shop.traced.counts("messaging.client.sent.messages", "error.type")
    assert by_error == {
        ("eventmesh.errors.Unreachable",): 1,
        ("rejected",): 1,
        (None,): 2,
    }
    [event] = shop.traced.events()
    assert event.log_record.event_name == "messaging.send.exception"
    assert shop.traced.problems() == []


async def test_a_broker_that_is_lost_while_receiving_is_a_failed_receive_span(
    open_shop: Open,
) -> None:
    heard: list[int] = []
    shop = await open_shop(forwarding(heard))
    async with shop.working():
        await shop.send(1)
        await shop.until(lambda: heard)
        shop.transport.broker.cut()  # type: ignore[attr-defined]
        await shop.until(
            lambda: any(span.status.status_code is StatusCode.ERROR for span in shop.traced.spans())
        )
    failed = [s for s in shop.traced.spans("receive") if s.status.status_code is StatusCode.ERROR]
    assert failed
    assert {span.attributes["error.type"] for span in failed} == {"eventmesh.errors.Unreachable"}
    assert shop.traced.problems() == []


@pytest.mark.parametrize("broker", ["memory", "amqp"])
async def test_links_say_what_differs_where_a_batch_has_messages_of_several_names(
    broker: str, open_shop: Open
) -> None:
    service = Service("shop")
    service.publisher(Done)
    service.publisher(Heard)
    handled: list[int] = []

    @service.subscriber()
    async def both(events: list[Done | Heard]) -> None:
        handled.extend(event.number for event in events)

    shop = await open_shop(service, broker)
    async with service.transaction() as tx:
        for number in range(10):
            tx.publish(Done(number=number, key=str(number)))
            tx.publish(Heard(number=number))
    async with shop.working():
        await shop.until(lambda: len(handled) == 20)
        await shop.until(lambda: len(outcomes(shop.traced)) == 20)
    before = f"{shop.settings.broker_prefix}:" if broker == "amqp" else ""
    queue = f"{shop.settings.broker_prefix}.queue.shop.both"
    mixed = {"amqp": queue}.get(broker)
    after = f":{queue}" if broker == "amqp" else ""
    [sent] = shop.traced.spans("send")
    assert sent.name == (f"send {before[:-1]}" if broker == "amqp" else "send")
    assert {link.attributes["messaging.destination.name"] for link in sent.links} == {
        f"{before}shop.done",
        f"{before}shop.heard",
    }
    batches = [span for span in shop.traced.spans("process") if len(span.links) > 1]
    assert batches
    for span in batches:
        assert span.name == " ".join(filter(None, ["process", mixed]))
        assert {link.attributes["messaging.destination.name"] for link in span.links} == {
            f"{before}shop.done{after}",
            f"{before}shop.heard{after}",
        }
    assert shop.traced.problems() == []


async def test_a_request_that_publishes_is_above_what_it_has_created(
    open_shop: Open, sqlite_url: str
) -> None:
    service = Service("shop")
    service.publisher(Done)
    shop = await open_shop(service)
    async with service:
        engine = create_async_engine(sqlite_url)
        tracer = shop.traced.tracers.get_tracer("the web framework")
        with tracer.start_as_current_span("POST /orders") as request:
            async with async_sessionmaker(engine).begin() as session:
                service.join(session).publish(Done(number=1))
        await engine.dispose()
    [created] = shop.traced.spans("create")
    assert created.parent is not None
    assert created.parent.span_id == request.get_span_context().span_id


async def test_what_other_programs_make_up_is_no_name_of_a_span_and_can_be_exported(
    open_shop: Open,
) -> None:
    service = Service("shop")

    @service.subscriber()
    async def both(event: Done | Heard) -> None: ...

    shop = await open_shop(service)
    known = seal(Done(number=1), source="shop", clock=SystemClock())
    odd = Envelope({**known.attributes, "id": "\udcff", "correlationid": "é"}, b"{")
    await publish_or_raise(shop.transport, [odd])
    [queue] = shop.transport.broker.queues.values()  # type: ignore[attr-defined]
    [waiting] = queue.waiting
    waiting.envelope = Envelope({**odd.attributes, "type": "made.up"}, b"{")
    async with shop.working():
        await shop.until(lambda: shop.traced.spans("settle"))
    [span] = shop.traced.spans("process")
    assert span.name == "process"
    assert span.attributes["messaging.message.id"] == r"\udcff"
    assert span.attributes["messaging.message.conversation_id"] == "é"
    assert shop.traced.problems() == []


async def test_log_lines_of_a_command_name_the_span_they_are_written_in(open_shop: Open) -> None:
    shop = await open_shop(Service("shop"))
    assert _with_trace(None, "info", {"event": "e"}) == {"event": "e"}
    with shop.traced.tracers.get_tracer("x").start_as_current_span("y") as span:
        context = span.get_span_context()
        assert _with_trace(None, "info", {"event": "e"}) == {
            "event": "e",
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }
