"""What RabbitMQ's management API adds to `status` and `doctor`, on a node that has it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from eventmesh import Event, Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.errors import UsageError
from eventmesh.operations.doctor.checks import examine
from eventmesh.operations.doctor.measuring import measure
from eventmesh.operations.doctor.verdict import Severity, Verdict
from eventmesh.operations.reach import Reach
from eventmesh.operations.status import SubscriptionStatus, mesh_status
from eventmesh.testing.servers.answering import Unavailable
from eventmesh.testing.servers.private import private
from eventmesh.testing.servers.processes import free_ports
from eventmesh.testing.servers.rabbitmq_server import RECIPE
from eventmesh.testing.servers.recipe import Place, PrivateServer
from eventmesh.transports.base import Subscription, Transport, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.rabbitmq.management import Management, queue_of, virtual_host
from eventmesh.wire.envelope import seal
from tests.integration.redis_traffic import take

CLOCK = SystemClock()
PREFIX = "managed"


class Told(Event, name="bank.told", version=1):
    number: int


@dataclass(frozen=True)
class Managed:
    """A node with the management plugin."""

    broker_url: str
    management_url: str

    def put(self, path: str, content: dict[str, Any]) -> None:
        login = urlsplit(self.broker_url)
        address = urlsplit(self.management_url)
        connection = http.client.HTTPConnection(address.netloc, timeout=30)
        token = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        connection.request("PUT", f"/api/{path}", json.dumps(content), headers)
        assert connection.getresponse().status in (201, 204)
        connection.close()


@pytest.fixture(scope="module")
def managed() -> Iterator[Managed]:
    [port] = free_ports(1)

    def with_plugin(place: Place) -> PrivateServer:
        made = RECIPE.private(place)
        (place.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        with (place.folder / "rabbitmq.conf").open("a") as settings:
            settings.write(
                f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"
                "collect_statistics_interval = 200\n"
            )
        return made

    try:
        with private(replace(RECIPE, private=with_plugin)) as instance:
            yield Managed(instance.url, f"http://127.0.0.1:{port}/")
    except Unavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture
async def transport(managed: Managed) -> AsyncIterator[Transport]:
    options = Settings(broker_prefix=PREFIX).transport_options
    async with open_transport(managed.broker_url, CLOCK, options) as opened:
        yield opened


def make_service() -> Service:
    service = Service("bank")

    @service.subscriber()
    async def tell(event: Told) -> None: ...

    return service


async def until(ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    """What is asked for, once this holds for it: the API's figures are some moments old."""
    async with asyncio.timeout(60):
        while not holds(answer := await ask()):  # noqa: ASYNC110  # it is on a server
            await asyncio.sleep(0.1)
    return answer


async def test_messages_in_flight_and_the_clock_are_known_and_what_may_lose_messages_is_found(
    managed: Managed, transport: Transport
) -> None:
    service = make_service()
    settings = Settings(
        broker_url=managed.broker_url,
        broker_prefix=PREFIX,
        rabbitmq_management_url=managed.management_url,
    )
    [subscription] = [each.subscription for each in service.handlers.values()]
    await transport.declare([subscription, Subscription("gone.listen", ("bank.told",))])
    await publish_or_raise(
        transport, [seal(Told(number=n), source="/bank", clock=CLOCK) for n in range(5)]
    )

    async with Reach([service], settings, CLOCK) as reach:

        async def status() -> SubscriptionStatus:
            [found] = (await mesh_status(reach)).subscriptions
            assert found.problem is None
            return found

        async def diagnosis() -> list[Verdict]:
            return examine(await measure(reach))

        async with transport.consume(subscription, prefetch=2) as consumer:
            await take(consumer, 2)
            found = await until(status, lambda found: found.in_flight == 2)
            assert (found.ready, found.consumers) == (3, 1)
            assert "in_flight" not in found.unknown

        def counts_stray(found: list[Verdict]) -> bool:
            return any(
                each.subject == "gone.listen" and "5 message(s)" in each.says for each in found
            )

        well = await until(diagnosis, counts_stray)
        severities = {each.check: each.severity for each in well if each.subject == "broker"}
        for check in ("reachable", "version", "clock", "alarms", "queue type"):
            assert severities[check] is Severity.OK, check
        [undeclared] = [each for each in well if each.check == "undeclared subscriptions"]
        assert f"{PREFIX}.queue.gone.listen" in undeclared.fix

        name = f"{PREFIX}.dead.{uuid.uuid4().hex}"
        async with await aio_pika.connect(managed.broker_url) as connection:
            await (await connection.channel()).declare_queue(name, durable=True)
        policy = {"pattern": f"^{name}$", "definition": {"message-ttl": 1000}, "apply-to": "all"}
        await asyncio.to_thread(managed.put, "policies/%2F/short", policy)
        ill = await until(
            diagnosis, lambda found: len([each for each in found if name in each.subject]) == 2
        )
    assert {(each.check, each.severity) for each in ill if name in each.subject} == {
        ("queue type", Severity.FAILURE),
        ("policies", Severity.FAILURE),
    }


async def test_a_management_api_that_refuses_leaves_what_amqp_tells(
    managed: Managed, transport: Transport
) -> None:
    service = make_service()
    await transport.declare([each.subscription for each in service.handlers.values()])
    wrong = managed.management_url.replace("//", "//nobody:hush-hush@")
    for url, says in (
        (wrong, "does not accept the user"),
        ("http://127.0.0.1:1/", "cannot be used"),
    ):
        settings = Settings(
            broker_url=managed.broker_url, broker_prefix=PREFIX, rabbitmq_management_url=url
        )
        async with Reach([service], settings, CLOCK) as reach:
            found = await mesh_status(reach)
            verdicts = examine(await measure(reach))
        [tell] = found.subscriptions
        assert (found.problems, tell.declared, tell.in_flight) == ((), True, None)
        assert says in tell.unknown["in_flight"]
        assert "hush-hush" not in tell.unknown["in_flight"]
        [skipped] = [each for each in verdicts if each.check == "undeclared subscriptions"]
        assert (skipped.severity, says in skipped.says) == (Severity.SKIPPED, True)


@pytest.mark.parametrize("url", ["", "amqp://h", "http://", "http://h:x", "file:///etc/passwd"])
def test_a_url_that_cannot_be_used_is_refused_with_the_variable(url: str) -> None:
    with pytest.raises(UsageError, match="EVENTMESH_RABBITMQ_MANAGEMENT_URL"):
        Management(url, "amqp://h/")


def test_a_queue_is_read_with_anything_missing() -> None:
    assert queue_of({}).ready is None
    assert queue_of({"name": "q", "arguments": [], "messages_ready": "x"}).name == "q"


@pytest.mark.parametrize(
    ("url", "host"), [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2Fa", "/a")]
)
def test_the_virtual_host_is_that_of_the_broker(url: str, host: str) -> None:
    assert virtual_host(url) == host
