"""A parked message blocks the later messages of its key and nothing else. With the command
`eventmesh outbox` people list, retry and skip such messages, also while relays run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text, update

from eventmesh import Event, Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import parked
from eventmesh.persistence.outbox.parked import ParkedKey, Waiting
from eventmesh.persistence.tables import outbox
from eventmesh.runtime.relaying.relay import PARK_AFTER, Relay
from eventmesh.transports.base import PublishResult
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope
from tests.integration.conftest import BANK, BECAUSE, TIMEOUT_SECONDS, until
from tests.support.moved_time import MovedTime
from tests.support.promised_times import allowed
from tests.support.units import newest_ids

if TYPE_CHECKING:
    from tests.integration.conftest import Project


EVERYWHERE = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mariadb"], indirect=True
)


class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    """The event that the bank of the test projects publishes."""

    owner: str
    balance: int
    note: str = ""


class Opened(Event, name="bank.opened", version=1):
    """A message without a key."""

    number: int


class MovableClock(SystemClock):
    """The machine's clock, moved forward by the test."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> Any:
        return super().now() + self.ahead


class RejectingBroker(MemoryTransport):
    """A broker that rejects some messages and, like RabbitMQ, confirms the others of a batch."""

    atomic_batches = False

    def __init__(self, clock: SystemClock) -> None:
        super().__init__(clock)
        self.rejected: set[str] = set()
        self.published: list[Envelope] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = asyncio.Event()

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        self.asked.set()
        await self.may_answer.wait()
        self.published += [each for each in envelopes if each.id not in self.rejected]
        return PublishResult({each.id: "never" for each in envelopes if each.id in self.rejected})


@dataclass
class Bank:
    """The bank's outbox, a broker that rejects chosen messages, and a relay between them."""

    service: Service
    database: Database
    clock: MovableClock
    broker: RejectingBroker
    ids: dict[str, str] = field(default_factory=dict)
    """The id of each message, by its name in the test."""

    def __post_init__(self) -> None:
        self.relay = self.another_relay(self.broker)

    def another_relay(self, broker: RejectingBroker) -> Relay:
        return Relay("bank", self.database, broker, self.clock, lease_time=30.0)

    async def publish(self, *names: str) -> None:
        """Publish messages named "a1" or "b2": the letter is the key; "-1" has none."""
        async with self.service.transaction() as tx:
            for name in names:
                number = int(name[1:])
                event = Opened(number=number) if name[0] == "-" else None
                tx.publish(event or Deposited(owner=name[0], balance=number))
        self.ids.update(zip(names, await newest_ids(self.database, len(names)), strict=True))

    async def relay_all(self, rounds: int = PARK_AFTER + 2) -> None:
        """Run the relay and move the clock forward, so that every delayed retry becomes due."""
        for _ in range(rounds):
            while (await self.relay.round()).confirmed:
                pass
            self.clock.ahead += timedelta(seconds=60)

    async def park_all(self) -> None:
        stuck = update(outbox).values(parked=True, attempts=10, last_error="never")
        async with self.database.connection() as connection:
            await connection.execute(stuck)

    def names(self, envelopes: Sequence[Envelope]) -> list[str]:
        called = {message_id: name for name, message_id in self.ids.items()}
        return [called[each.id] for each in envelopes]

    @property
    def published(self) -> list[str]:
        return self.names(self.broker.published)

    async def listed(self, **which: Any) -> list[tuple[str, str]]:
        """The messages in the outbox, with their states."""
        return [(self.names([row.envelope])[0], row.state) for row in await self.rows(**which)]

    async def rows(self, **which: Any) -> list[Waiting]:
        async with self.database.reading() as connection:
            now = await self.database.time.ask(connection)
            return await parked.listed(connection, now, limit=100, **which)

    async def row(self, name: str) -> Waiting:
        async with self.database.reading() as connection:
            now = await self.database.time.ask(connection)
            [row] = await parked.found(connection, now, [self.ids[name]])
        return row

    async def retry(self, *names: str, key: str | None = None) -> list[str]:
        ids = [self.ids[name] for name in names] if names else None
        async with self.database.connection() as connection:
            now = await self.database.time.ask(connection)  # as the command does
            retried = await parked.retry(connection, now, ids=ids, key=key)
        called = {message_id: name for name, message_id in self.ids.items()}
        return [called[message_id] for message_id in retried]

    async def skip(self, *rows: Waiting) -> list[str]:
        async with self.database.connection() as connection:
            gone = await parked.skip(connection, [row.seq for row in rows])
        return [self.names([row.envelope])[0] for row in rows if row.seq in gone]


@pytest.fixture
async def single_bank(database_url: str) -> AsyncIterator[Bank]:
    from eventmesh.persistence import migration

    service, clock = Service("bank"), MovableClock()
    service.configure(Settings(database_urls={"bank": database_url}))
    for message in (Deposited, Opened):
        service.publisher(message)
    database = Database(database_url, service="bank")
    database.time = MovedTime(clock)
    await migration.upgrade(database)
    yield Bank(service, database, clock, RejectingBroker(clock))
    await database.close()
    await service.close()


@pytest.fixture(params=[False, True], ids=["by message", "by batch"])
async def bank(request: pytest.FixtureRequest, single_bank: Bank) -> Bank:
    """On a broker that confirms messages one by one, and on one that confirms whole batches."""
    single_bank.broker.atomic_batches = request.param
    return single_bank


class TestParking:
    async def test_a_message_that_is_always_rejected_is_parked_and_blocks_only_its_key(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1", "b1", "-1", "a2", "b2")
        bank.broker.rejected = {bank.ids["a1"]}
        await bank.relay_all()
        await bank.publish("a3", "b3", "-2")
        await bank.relay_all()
        assert bank.published == ["b1", "-1", "b2", "b3", "-2"]
        assert await bank.listed() == [("a1", "parked"), ("a2", "blocked"), ("a3", "blocked")]
        row = await bank.row("a1")
        assert (row.attempts, row.error) == (PARK_AFTER, "never")

    async def test_a_parked_message_without_a_key_blocks_no_other(self, bank: Bank) -> None:
        await bank.publish("-1", "-2", "a1")
        bank.broker.rejected = {bank.ids["-1"]}
        await bank.relay_all()
        assert bank.published == ["-2", "a1"]
        assert await bank.listed() == [("-1", "parked")]

    @pytest.mark.usefixtures("long_holds")
    async def test_every_waiting_message_has_a_state_that_tells_why(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1", "a2", "b1")
        async with bank.service.transaction() as tx:
            tx.publish(Deposited(owner="c", balance=1), delay="1h")
        [bank.ids["c1"]] = await newest_ids(bank.database)
        assert dict(await bank.listed()) == {
            "a1": "ready", "a2": "ready", "b1": "ready", "c1": "delayed"
        }  # fmt: skip
        bank.broker.rejected = {bank.ids["a1"]}
        await bank.relay.round()
        assert dict(await bank.listed()) == {"a1": "rejected", "a2": "blocked", "c1": "delayed"}

    @EVERYWHERE
    async def test_a_retried_key_is_published_in_order(self, bank: Bank) -> None:
        await bank.publish("a1", "a2")
        bank.broker.rejected = set(bank.ids.values())
        await bank.relay_all()
        await bank.publish("a3", "b1")
        await bank.relay_all()
        assert bank.published == ["b1"]
        bank.broker.rejected.clear()
        assert "a1" in await bank.retry(key="a")
        await bank.relay.round()
        await bank.relay_all()
        assert bank.published == ["b1", "a1", "a2", "a3"]
        assert await bank.listed() == []

    async def test_a_message_that_is_retried_first_still_waits_for_earlier_ones_of_its_key(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1", "a2")
        await bank.park_all()
        assert await bank.retry("a2") == ["a2"]
        await bank.relay_all()
        assert bank.published == []
        await bank.retry("a1")
        await bank.relay_all()
        assert bank.published == ["a1", "a2"]

    async def test_a_retried_message_that_is_still_rejected_is_parked_again(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1", "a2")
        bank.broker.rejected = {bank.ids["a1"]}
        await bank.relay_all()
        await bank.retry("a1")
        row = await bank.row("a1")
        assert (row.state, row.attempts, row.error) == ("ready", 1, "never")
        await bank.relay_all(PARK_AFTER - 2)
        assert (await bank.row("a1")).attempts == PARK_AFTER - 1
        await bank.relay_all(2)
        assert await bank.listed() == [("a1", "parked"), ("a2", "blocked")]
        assert bank.published == []

    async def test_after_a_skipped_message_the_rest_of_its_key_is_published(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1", "a2", "a3")
        bank.broker.rejected = {bank.ids["a1"]}
        await bank.relay_all()
        assert await bank.skip(await bank.row("a1")) == ["a1"]
        await bank.relay_all()
        assert bank.published == ["a2", "a3"]
        assert await bank.listed() == []

    @pytest.mark.usefixtures("long_holds")
    async def test_only_parked_messages_can_be_retried_or_skipped(self, single_bank: Bank) -> None:
        bank = single_bank
        await bank.publish("a1", "b1")
        bank.broker.rejected = {bank.ids["a1"]}
        await bank.relay.round()
        await bank.publish("a2")
        assert await bank.retry("a1", "a2") == []
        assert await bank.skip(await bank.row("a1"), await bank.row("a2")) == []
        assert await bank.listed() == [("a1", "rejected"), ("a2", "blocked")]

    async def test_thousands_of_messages_are_retried_by_one_command(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish(*(f"-{number}" for number in range(2500)))
        await bank.park_all()
        assert len(await bank.retry()) == 2500
        async with bank.database.reading() as connection:
            assert await parked.parked_keys(connection, 10) == []

    async def test_more_ids_than_a_statement_may_have_parameters_are_found_and_retried(
        self, single_bank: Bank
    ) -> None:
        bank, now = single_bank, single_bank.clock.now()
        await bank.publish("a1", "b1")
        await bank.park_all()
        unknown = [f"unknown-{number}" for number in range(40_000)]
        asked = [bank.ids["b1"], *unknown, bank.ids["a1"]]
        async with bank.database.connection() as connection:
            rows = await parked.found(connection, now, asked)
            assert bank.names([row.envelope for row in rows]) == ["a1", "b1"]
            assert await parked.retry(connection, now, ids=asked) == [
                bank.ids["a1"],
                bank.ids["b1"],
            ]


@EVERYWHERE
class TestWhileRelaysRun:
    async def test_a_message_that_is_being_published_cannot_be_retried_or_skipped(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1")
        bank.broker.may_answer.clear()
        publishing = asyncio.ensure_future(bank.relay.round())
        await asyncio.wait_for(bank.broker.asked.wait(), 60)
        assert await bank.retry() == []
        assert await bank.skip(await bank.row("a1")) == []
        bank.broker.may_answer.set()
        assert (await publishing).confirmed == 1
        await bank.relay_all()
        assert bank.published == ["a1"]

    @pytest.mark.parametrize("decision", ["retry", "skip"])
    async def test_a_relay_with_an_expired_lease_neither_loses_nor_reorders_messages(
        self, single_bank: Bank, decision: str
    ) -> None:
        """Its publish hung until its lease had expired; another relay took over and parked it."""
        bank, slow = single_bank, RejectingBroker(single_bank.clock)
        late = bank.another_relay(slow)
        await bank.publish("a1", "a2")
        slow.may_answer.clear()
        hanging = asyncio.ensure_future(late.round())
        await asyncio.wait_for(slow.asked.wait(), 60)
        async with bank.database.connection() as connection:  # its lease expires
            await connection.execute(
                text("UPDATE eventmesh_lease SET owner = NULL, expires_at = NULL")
            )
            await connection.execute(text("DELETE FROM eventmesh_relay"))
        bank.broker.rejected = {bank.ids["a1"]}
        await bank.relay_all()
        assert await bank.listed() == [("a1", "parked"), ("a2", "blocked")]
        if decision == "retry":
            await bank.retry("a1")
        else:
            await bank.skip(await bank.row("a1"))
        bank.broker.rejected.clear()
        slow.may_answer.set()
        await hanging
        await bank.relay_all()
        published = [*bank.names(slow.published), *bank.published]
        assert sorted(set(published)) == ["a1", "a2"]
        assert published.index("a1") < published.index("a2")
        assert await bank.listed() == []

    async def test_each_message_is_either_published_once_or_skipped_whatever_people_decide(
        self, single_bank: Bank
    ) -> None:
        """Two people retry and skip at random while two relays run and the broker rejects
        messages."""
        bank, chance = single_bank, random.Random(7)  # noqa: S311
        await bank.publish(*(f"{key}{number}" for number in range(15) for key in "abcd"))
        bank.broker.rejected = set(chance.sample(sorted(bank.ids.values()), 12))
        other, skipped = bank.another_relay(bank.broker), list[str]()

        async def decide() -> None:
            for row in await bank.rows(parked=True):
                if chance.random() < 0.5:
                    skipped.extend(await bank.skip(row))
                else:
                    bank.broker.rejected.discard(row.envelope.id)
                    await bank.retry(*bank.names([row.envelope]))

        async with asyncio.timeout(120):
            while await bank.listed():
                await asyncio.gather(bank.relay.round(), other.round(), decide(), decide())
                bank.clock.ahead += timedelta(seconds=60)
        assert sorted([*bank.published, *skipped]) == sorted(bank.ids)
        for key in "abcd":
            numbers = [int(name[1:]) for name in bank.published if name[0] == key]
            assert numbers == sorted(numbers)


@EVERYWHERE
class TestQueries:
    async def test_shares_count_messages_by_name_and_state_and_parked_keys_are_listed(
        self, single_bank: Bank
    ) -> None:
        bank = single_bank
        await bank.publish("a1", "a2", "a3", "b1", "-1", "-2")
        bank.broker.rejected = {bank.ids["a1"], bank.ids["-1"]}
        await bank.relay_all()
        await bank.publish("b2")
        async with bank.database.reading() as connection:
            shares = await parked.shares(connection, bank.clock.now())
            keys = await parked.parked_keys(connection, 10)
        assert [(each.name, each.state, each.number, each.attempts) for each in shares] == [
            ("bank.deposited", "blocked", 2, 0),
            ("bank.deposited", "parked", 1, 10),
            ("bank.deposited", "ready", 1, 0),
            ("bank.opened", "parked", 1, 10),
        ]
        assert keys == [ParkedKey("a", 1, 2, 10), ParkedKey(None, 1, 0, 10)]

    async def test_a_filtered_list_begins_with_the_oldest_message(self, single_bank: Bank) -> None:
        bank = single_bank
        await bank.publish("a1", "b1", "-1", "a2")
        assert await bank.listed(key="a") == [("a1", "ready"), ("a2", "ready")]
        assert await bank.listed(name="bank.opened") == [("-1", "ready")]
        async with bank.database.reading() as connection:
            rows = await parked.listed(connection, bank.clock.now(), limit=2)
        assert bank.names([row.envelope for row in rows]) == ["a1", "b1"]
        assert {row.envelope.data for row in rows} == {b""}
        assert [row.size for row in rows] == [len((await bank.row("a1")).envelope.data)] * 2


@pytest.fixture
async def shop(
    project: Project, database_url: str
) -> AsyncIterator[tuple[Project, Callable[..., Any]]]:
    """A project with the bank on each database, and a function that adds a message to its outbox,
    in the state in which the relay would have left it."""
    sized = "mapped_column(String(255), primary_key"  # MariaDB requires a length
    text = BANK.replace("mapped_column(primary_key", sized)
    project.service(
        text.replace("import asyncio\n", "import asyncio\nfrom sqlalchemy import String\n")
    )
    project.environment["EVENTMESH_BANK_DATABASE_URL"] = database_url
    project.run("db", "upgrade", "bank").succeeds()
    service = Service("bank")
    service.configure(Settings(database_urls={"bank": database_url}))
    service.publisher(Deposited)

    async def put(
        owner: str,
        balance: int = 0,
        *,
        error: str = "",
        data: bytes | None = None,
        delay: str = "0s",
    ) -> str:
        async with service.transaction() as tx:
            tx.publish(Deposited(owner=owner, balance=balance), delay=delay)
        [message_id] = await newest_ids(await service.database())
        changes: dict[str, Any] = {"data": data} if data is not None else {}
        if error:
            changes |= {"parked": True, "attempts": 10, "last_error": error}
        if changes:
            async with (await service.database()).connection() as connection:
                row = update(outbox).where(outbox.c.id == message_id)
                await connection.execute(row.values(**changes))
        return message_id

    yield project, put
    await service.close()


@EVERYWHERE
async def test_the_list_tells_until_when_a_message_is_delayed(shop: tuple[Project, Any]) -> None:
    project, put = shop
    await put("ada", 1, delay="14d")
    [delayed] = json.loads(project.run("outbox", "list", "bank", "--json").succeeds())
    due = datetime.fromisoformat(delayed["due_at"])
    listed = project.run("outbox", "list", "bank").succeeds("1 message(s)")
    assert f"  delayed until {due:%Y-%m-%d %H:%M:%S}  bank.deposited" in listed
    assert timedelta(days=13) < due - datetime.now(UTC) < timedelta(days=15)


@EVERYWHERE
async def test_list_show_stats_and_retry_work_on_every_database(shop: tuple[Project, Any]) -> None:
    project, put = shop
    stuck, behind, second = await put("ada", 1, error="no\nroom"), await put("ada", 2), None
    second = await put("bob", 3, error="no room")
    listed = project.run("outbox", "list", "bank").succeeds("3 message(s)", '"ada"  no\\nroom')
    assert [line.split()[0] for line in listed.splitlines()[:-1]] == [stuck, behind, second]
    assert [line.split()[2] for line in listed.splitlines()[:-1]] == ["parked", "blocked", "parked"]
    as_json = json.loads(
        project.run("outbox", "list", "bank", "--parked", "--key", "ada", "--json").succeeds()
    )
    assert [(each["id"], each["state"], each["attempts"]) for each in as_json] == [
        (stuck, "parked", 10)
    ]
    project.run("outbox", "list", "bank", "--limit", "1").succeeds("1 message(s)")
    project.run("outbox", "show", "bank", stuck).succeeds(
        "state: parked", '"balance":1', "error: no\n    room", "bank.deposited"
    )
    counted = json.loads(project.run("outbox", "stats", "bank", "--json").succeeds())
    assert (counted["parked"], counted["blocked"], counted["ready"]) == (2, 1, 0)
    assert counted["parked_keys"][0] == {"key": "ada", "parked": 1, "blocked": 1, "attempts": 10}
    assert counted["oldest_age"] > 0
    project.run("outbox", "stats", "bank").succeeds(
        "bank: 1 blocked, 2 parked; the oldest has waited for",
        "bank.deposited: 1 blocked, 2 parked; rejected 10 times",
        'key "ada": 1 blocked, 1 parked; rejected 10 times',
    )
    partly = project.run("outbox", "retry", "bank", *BECAUSE, stuck, "none", "--json")
    assert json.loads(partly.out) == [stuck]
    partly.fails(2, "none")
    project.run("outbox", "retry", "bank", *BECAUSE, "--key", "bob").succeeds(
        "1 message(s) to be retried"
    )
    project.run("outbox", "retry", "bank", *BECAUSE, "--all").succeeds("0 message(s) to be retried")
    worker = project.worker()
    worker.until_prints("bob has 0.03")
    worker.until_prints("ada has 0.02")
    ada = [line for line in worker.out.splitlines() if line.startswith("ada")]
    assert ada == ["ada has 0.01", "ada has 0.02"]
    until(
        lambda: "nothing waits" in project.run("outbox", "stats", "bank").succeeds(),
        "an empty outbox",
    )
    worker.drain()


@EVERYWHERE
async def test_a_running_relay_publishes_a_retried_message_promptly(
    shop: tuple[Project, Any],
) -> None:
    project, put = shop
    stuck = await put("ada", 1, error="no room")
    await put("ada", 2)
    worker = project.worker()
    await put("bob", 3)
    worker.until_prints("bob has 0.03")
    await asyncio.sleep(1.0)
    assert "ada" not in worker.out
    project.run("outbox", "retry", "bank", *BECAUSE, stuck).succeeds()
    retried_at = time.monotonic()
    worker.until_prints("ada has 0.02")
    assert time.monotonic() - retried_at < allowed(10.0)
    assert worker.out.index("ada has 0.01") < worker.out.index("ada has 0.02")
    worker.drain()


async def test_skip_requires_yes_and_prints_what_it_deletes(
    shop: tuple[Project, Any],
) -> None:
    project, put = shop
    stuck = await put("ada", 1, error="no room", data=b"\xff\x1b[31mraw")
    free = await put("ada", 2)
    project.run("outbox", "skip", "bank", *BECAUSE, stuck).fails(2, "--yes")
    project.run("outbox", "skip", "bank", *BECAUSE, stuck, free, "--yes").fails(
        2, free, "not parked"
    )
    assert "2 message(s)" in project.run("outbox", "list", "bank").succeeds()
    skipped = project.run("outbox", "skip", "bank", *BECAUSE, stuck, "--yes", "--json")
    [record] = json.loads(skipped.succeeds())
    assert base64.b64decode(record["data_base64"]) == b"\xff\x1b[31mraw"
    assert record["attributes"]["partitionkey"] == "ada"
    assert "1 message(s) skipped" in skipped.err
    project.run("outbox", "list", "bank").succeeds("1 message(s)", "ready")
    project.run("outbox", "skip", "bank", *BECAUSE, stuck, "--yes").fails(
        2, stuck, "outbox list bank"
    )


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
async def test_skip_asks_for_confirmation_at_a_terminal(
    shop: tuple[Project, Any], answer: str, left: int
) -> None:
    project, put = shop
    stuck = await put("ada", 1, error="no room")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(  # noqa: S603, ASYNC221
            [sys.executable, "-m", "eventmesh", "outbox", "skip", "bank", *BECAUSE, stuck],
            cwd=project.root,
            env=project.environment,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert '"balance":1' in done.stdout
    assert "Permanently delete 1 message(s)?" in done.stderr
    assert done.returncode == left
    project.run("outbox", "list", "bank").succeeds(f"{left} message(s)")


async def test_control_characters_of_messages_and_errors_never_reach_the_terminal(
    shop: tuple[Project, Any],
) -> None:
    project, put = shop
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\r"
    stuck = await put(f"a{evil}", 1, error=f"no{evil}\nall is well", data=evil.encode())
    for command in (["list", "bank"], ["show", "bank", stuck], ["stats", "bank"]):
        said = project.run("outbox", *command).succeeds()
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(said)
    assert len(project.run("outbox", "list", "bank").out.splitlines()) == 2
    said = project.run("outbox", "skip", "bank", *BECAUSE, stuck, "--yes").succeeds()
    assert "\x1b" not in said


async def test_a_long_error_is_listed_with_its_beginning_and_shown_whole(
    shop: tuple[Project, Any],
) -> None:
    project, put = shop
    error = "the broker said " + "no, " * 500
    stuck = await put("ada", error=error)
    [line, _] = project.run("outbox", "list", "bank").succeeds().splitlines()
    assert "the broker said no, no, " in line
    assert (len(line) < 400, line[-1]) == (True, "…")
    assert error.strip() in project.run("outbox", "show", "bank", stuck).succeeds()


async def test_an_unknown_message_and_invalid_options_are_usage_errors(
    shop: tuple[Project, Any],
) -> None:
    project, put = shop
    free = await put("ada", 1)
    unknown = "00000000-0000-7000-8000-000000000000"
    for command, words in (
        (["show", "bank", unknown], [unknown, "outbox list bank"]),
        (["retry", "bank", *BECAUSE, unknown], [unknown, "outbox list bank --parked"]),
        (["retry", "bank", *BECAUSE, free], [free, "no parked message"]),
        (["retry", "bank", *BECAUSE, "--key", "ada"], ["'ada'"]),
        (["retry", "bank", *BECAUSE], ["--all"]),
        (["retry", "bank", *BECAUSE, free, "--all"], ["--all"]),
    ):
        ended = project.run("outbox", *command)
        ended.fails(2, *words)
        assert ended.out == ""
    for command, words in (
        (["list", "bank", "--limit", "99999999999999999999"], ["--limit"]),
        (["list", "bank", "--key", "\udcff"], ["--key", "UTF-8"]),
        (["retry", "bank", *BECAUSE, free, "\udcff"], ["[ID]", "UTF-8"]),
        (["skip", "bank", *BECAUSE, "\udcff", "--yes"], ["ID", "UTF-8"]),
    ):
        ended = project.run("outbox", *command)
        assert (ended.code, ended.out) == (2, ""), ended.said
        assert all(word in ended.err for word in [*words, "--help"]), ended.err
    project.service('from eventmesh import Service\nservice = Service("quiet")\n', name="quiet")
    project.run("outbox", "stats", "quiet").fails(2, "has no outbox")


def test_reading_the_outbox_creates_no_database(project: Project) -> None:
    project.service()
    for command in (["stats", "bank"], ["list", "bank"], ["show", "bank", "x"]):
        project.run("outbox", *command).fails(3, "is not there", "EVENTMESH_BANK_DATABASE_URL")
    assert not (project.root / ".eventmesh").exists()


def test_reading_the_outbox_migrates_no_database(project: Project) -> None:
    project.service()
    path = project.root / "own.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE own (id INTEGER)")
    connection.close()
    project.environment["EVENTMESH_BANK_DATABASE_URL"] = f"sqlite:///{path}"
    for command in (["list"], ["stats"], ["retry", *BECAUSE, "--all"]):
        project.run("outbox", command[0], "bank", *command[1:]).fails(4, "db upgrade bank")
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    assert tables == [("own",)]


def test_a_missing_or_unmigrated_postgresql_database_is_an_error_that_names_the_fix(
    project: Project, postgres_url: str
) -> None:
    project.service()
    project.environment["EVENTMESH_BANK_DATABASE_URL"] = postgres_url
    project.run("outbox", "stats", "bank").fails(4, "db upgrade bank")
    project.environment["EVENTMESH_BANK_DATABASE_URL"] = postgres_url + "_none"
    project.run("outbox", "stats", "bank").fails(3, "--create")
