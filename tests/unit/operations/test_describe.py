"""What `eventmesh describe` tells of a project, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eventmesh.cli.describe import as_document, as_lines
from eventmesh.operations.describe import MeshDescription, describe, mermaid
from eventmesh.runtime.declaring.discovery import load_services
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.base import Subscription
from eventmesh.transports.objects import broker_objects

PROJECT = """
[tool.eventmesh.services]
bank = "described_bank.service:service"
shop = "described_shop:service"
"""
CONTRACTS = """
from eventmesh import Command, Event

class Deposit(Command, name="bank.deposit", version=2, key="owner"):
    owner: str

@Deposit.upcaster(from_version=1)
def from_1(data: dict) -> dict:
    return data

class Deposited(Event, name="bank.deposited", version=1):
    owner: str

class Ordered(Event, name="shop.ordered", version=1, key="id"):
    id: str

class Cancelled(Event, name="shop.cancelled", version=1, key="id"):
    id: str
"""
HANDLERS = """
from pydantic import BaseModel
from eventmesh import Retry, Saga, Service, Transaction, constant
from described_bank.contracts import Cancelled, Deposit, Deposited, Ordered

service, other = Service("bank", shares_database_with=["shop"]), Service("branch")

@service.subscriber(concurrency=3, timeout="5s", isolated=True, sources=["/bridge"],
                    retry=Retry(attempts=3, backoff=constant("1s"), give_up_on=(KeyError,)))
async def deposit(command: Deposit, tx: Transaction) -> Deposited: ...

@service.subscriber(Deposited, name="heard", retry=Retry(backoff=lambda _: 1 / 0))
async def hear(events: list[Deposited]) -> None: ...

async def forgotten(event: Deposited) -> None: ...

def neither(event: list[Deposited]) -> None: ...

@other.subscriber()
async def strange(event: Deposited) -> None: ...

@service.reaction(Ordered, undone_by=Cancelled)
async def react(event: Ordered, tx: Transaction) -> int: ...

@react.undo
async def take_back(event: Cancelled, result: int, tx: Transaction) -> None: ...

class State(BaseModel):
    owner: str

unused = Saga("bank.unused", state=State)

def helper(owner: str) -> None: ...
"""
SAGA = """
from eventmesh import SagaFailure

opened = Saga("bank.open_account", state=State)

@opened.starts
def begin(event: Ordered) -> State: ...

@opened.step(ok=Deposited, timeout="1m")
def pay_in(state: State) -> Deposit: ...

@pay_in.done
def keep(state: State, reply: Deposited) -> State: ...

@pay_in.undo()
def pay_out(state: State, reply: Deposited) -> Deposit: ...

@opened.undone
def refused(state: State, failure: Cancelled | SagaFailure) -> None: ...

opened.flow(pay_in)
service.include(opened)
"""
NEVER_IMPORTED = """
raise SystemExit("this must not run")
from described_bank.handlers import service

@service.subscriber()
async def lost(event): ...

def plain(): ...
"""
SHOP = """
from eventmesh import Service
from described_bank.contracts import Deposit, Ordered

service = Service("shop")
service.publisher(Ordered)
service.publisher(Deposit, version=2)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "described_bank"
    package.mkdir()
    for path, text in {
        "pyproject.toml": PROJECT,
        "described_shop.py": SHOP,
        "described_bank/__init__.py": "",
        "described_bank/contracts.py": CONTRACTS,
        "described_bank/handlers.py": HANDLERS,
        "described_bank/service.py": "from described_bank.handlers import service\n",
        "described_bank/lost.py": NEVER_IMPORTED,
        "described_bank/broken.py": "def (",
    }.items():
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("described_")]:
        del sys.modules[name]


@pytest.fixture
def described(project: Path) -> Callable[..., MeshDescription]:
    def make(only: str | None = None, broker_url: str = "memory://") -> MeshDescription:
        settings = Settings(
            broker_url=broker_url,
            database_urls={"bank": "postgresql://u:secret@db.example/bank"},
            schemas=project / "schemas",
        )
        return describe(load_services([], project), settings, project, only=only)

    return make


Described = Callable[..., MeshDescription]


def test_a_handler_is_described_with_its_options(described: Described) -> None:
    [bank, shop] = described().services
    [deposit, heard, react] = bank.handlers
    assert (bank.name, bank.target, shop.target) == (
        "bank",
        "described_bank.service:service",
        "described_shop:service",
    )
    assert (deposit.subscription, deposit.function, deposit.messages, deposit.returns) == (
        "bank.deposit",
        "described_bank.handlers.deposit",
        ("bank.deposit v2",),
        ("bank.deposited",),
    )
    assert (deposit.concurrency, deposit.timeout, deposit.isolated) == (3, 5.0, True)
    assert (deposit.batch, deposit.transactional, deposit.sources) == (False, True, ("/bridge",))
    assert (deposit.retry.attempts, deposit.retry.delays) == (3, (1.0, 1.0))
    assert deposit.retry.never_retried == ("KeyError",)
    assert (heard.subscription, heard.batch, heard.transactional) == ("bank.heard", True, False)
    assert heard.retry.delays is None
    assert react.function == "described_bank.handlers.react"
    assert bank.reactions == ("bank.react",)
    assert bank.database is not None
    assert (bank.database.kind, bank.database.shared_with) == ("postgresql", ("shop",))
    assert shop.publishes == ("bank.deposit", "shop.ordered")


def test_what_a_saga_or_a_reaction_calls_is_not_listed_among_what_nobody_calls(
    described: Described, project: Path
) -> None:
    handlers = project / "described_bank" / "handlers.py"
    handlers.write_text(handlers.read_text() + SAGA)
    functions = {each.name for each in described().services[0].functions}
    assert {"deposit", "forgotten"} < functions
    assert functions.isdisjoint({"begin", "keep", "pay_out", "refused", "take_back"})


def test_it_is_said_why_a_function_is_a_handler_or_is_not(described: Described) -> None:
    functions = {each.name: each for each in described().services[0].functions}
    assert functions["deposit"].subscription == "bank.deposit"
    assert functions["react"].subscription == "bank.react"
    assert {name: each.why for name, each in functions.items() if each.subscription is None} == {
        "": functions[""].why,
        "forgotten": "takes Deposited, and is not decorated with @service.subscriber()",
        "neither": (
            "takes Deposited, and is not decorated with @service.subscriber(); it is not `async` "
            "either"
        ),
        "strange": "is a handler of another Service, other = Service('branch')",
        "unused": "the saga is not included: write service.include(unused)",
        "lost": ("its module is never imported: import described_bank.lost where bank is declared"),
    }
    assert (functions[""].module, "cannot be read" in functions[""].why) == (
        "described_bank.broken",
        True,
    )
    assert "described_bank.lost" not in sys.modules


def test_a_message_is_described_with_who_sends_and_who_reads_it(described: Described) -> None:
    messages = {each.name: each for each in described().messages}
    deposit = messages["bank.deposit"]
    assert (deposit.kind, deposit.owner, deposit.version, deposit.key) == (
        "command",
        "bank",
        2,
        "owner",
    )
    assert [(each.service, each.version) for each in deposit.published] == [("shop", 2)]
    assert [(each.subscription, each.versions) for each in deposit.read] == [
        ("bank.deposit", (1, 2))
    ]
    assert deposit.notes == ()
    assert messages["shop.cancelled"].notes == ("no service of this project publishes it",)


def test_one_service_is_described_with_what_others_do_with_its_messages(
    described: Described,
) -> None:
    found = described(only="shop")
    assert [each.name for each in found.services] == ["shop"]
    assert [each.name for each in found.messages] == [
        "bank.deposit",
        "shop.cancelled",
        "shop.ordered",
    ]
    assert found.messages[0].read[0].subscription == "bank.deposit"


def test_the_document_is_the_same_each_time_and_has_no_secret_or_place(
    described: Described, project: Path
) -> None:
    first, second = (json.dumps(as_document(described()), indent=2) for _ in range(2))
    assert first == second
    for word in ("secret", "db.example", str(project)):
        assert word not in first


def test_the_text_names_everything(described: Described) -> None:
    text = "\n".join(as_lines(described(broker_url="redis://r")))
    for line in (
        "service bank (described_bank.service:service)",
        "  database postgresql, shared with shop, set by EVENTMESH_BANK_DATABASE_URL",
        "    described_bank.handlers.deposit: a message at a time, in a transaction, isolated, "
        "3 at a time, timeout 5 s, publishes bank.deposited, also from /bridge",
        "    retry: 3 attempts; after 1, 1 s; never after KeyError",
        "  not a handler: described_bank.handlers.forgotten",
        "  bank.deposit v2: command of bank, key owner",
        "  stream eventmesh:dead:bank.deposit (dead letters)",
    ):
        assert line in text.splitlines(), line


def test_the_chart_connects_services_messages_and_subscriptions(described: Described) -> None:
    lines = mermaid(described()).splitlines()
    assert lines[0] == "flowchart LR"
    for line in (
        "  subgraph service_bank[bank]",
        '    to_bank_heard["bank.heard"]',
        '  message_bank_deposit[/"bank.deposit"/]',
        "  from_shop --> message_bank_deposit",
        "  message_bank_deposit --> to_bank_deposit",
        '  message_bank_deposited("bank.deposited")',
    ):
        assert line in lines, line


@pytest.mark.parametrize(
    ("url", "has"),
    [
        ("redis://r", ("stream", "p:stream:a.b", "messages a.b")),
        ("redis+cluster://r", ("stream", "{p}:dead:s.h", "dead letters")),
        ("redis+cluster://r?slots=2", ("stream", "{p}:dead:s.h", "dead letters")),
        ("redis+cluster://r?slots=2", ("stream", "{p.1.2}:dead:s.h", "dead letters")),
        ("redis://r", ("hash", "p:layout", "over how many slots the prefix is spread")),
        ("amqp://r", ("queue", "p.dead.s.h", "quorum")),
        ("amqps://r", ("binding", "p -> p.message.a.b", "a.b")),
        ("sqlite:///x", ("binding", "a.b -> s.h", "row of the file")),
    ],
)
def test_objects_on_each_broker_follow_from_the_names(url: str, has: tuple[str, ...]) -> None:
    objects = broker_objects(url, "p", [Subscription("s.h", ("a.b",))], ["a.b", "a.c"])
    assert has in [(each.kind, each.name, each.purpose) for each in objects]
    assert objects == sorted(set(objects))


def test_it_is_said_why_a_broker_has_no_objects(described: Described) -> None:
    found = described(broker_url="redis://r")
    none = replace(found, broker=replace(found.broker, objects=()))
    assert list(as_lines(none))[-1] == (
        "  none: nothing is subscribed to, and publishing needs none"
    )
    in_memory = described(broker_url="memory://")
    assert list(as_lines(in_memory))[-1] == "  none: the broker is in the memory of a process"


def test_a_broker_in_memory_has_no_objects() -> None:
    assert broker_objects("memory://", "p", [Subscription("s.h", ("a.b",))], ["a.b"]) == []
