"""What operators do by command is in the log of actions: who did what, why, and what came of it."""

from __future__ import annotations

import getpass
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import until

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

WHY = "the branch is there"

DEPOSIT = (
    "from services.bank.service import Deposit, deposits, service\n"
    "import asyncio\n"
    "async def main():\n"
    "    async with service:\n"
    "        for owner in OWNERS:\n"
    "            await deposits.publish(Deposit(owner=owner, cents=1))\n"
    "asyncio.run(main())\n"
)


def recorded(bank: Project) -> list[dict[str, Any]]:
    """The log of actions of the bank, oldest first."""
    with closing(sqlite3.connect(bank.root / ".eventmesh/bank.db")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM eventmesh_action ORDER BY seq").fetchall()
    return [dict(row) | {"details": json.loads(row["details"])} for row in rows]


def dead_letters(bank: Project, *owners: str) -> list[dict[str, Any]]:
    """Let deposits of these owners be dead-lettered."""
    worker = bank.worker()
    bank.python(DEPOSIT.replace("OWNERS", repr(owners))).succeeds()
    letters = bank.letters(len(owners))
    worker.drain()
    return letters


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
def test_replay_and_discard_are_recorded_for_each_subscription(
    on: Callable[[str], Project], broker: str
) -> None:
    bank = on(broker)
    first, second = (each["id"] for each in dead_letters(bank, "refused", "broken"))
    bank.run("dlq", "replay", "bank", first, "--reason", WHY).succeeds("1 dead letter(s) replayed")
    bank.run("dlq", "discard", "bank", "--all", "--reason", WHY).succeeds("1 dead letter(s)")
    replay, discard = recorded(bank)
    for action in (replay, discard):
        assert (action["who"], action["reason"]) == (getpass.getuser(), WHY)
        assert (action["service"], action["subject"]) == ("bank", "bank.deposit")
    assert (replay["what"], replay["outcome"]) == ("replay dead letters", "1 of 1 replayed")
    assert replay["details"] == {"number": 1, "ids": [first]}
    assert (discard["what"], discard["outcome"]) == ("discard dead letters", "1 of 1 discarded")
    assert discard["details"] == {"all": True}
    gone = bank.run("dlq", "replay", "bank", second, "--reason", WHY)
    gone.fails(2, second, "nothing was replayed")
    assert len(recorded(bank)) == 2


def test_nothing_is_done_without_a_reason_or_where_it_cannot_be_recorded(bank: Project) -> None:
    [letter] = dead_letters(bank, "refused")
    for command in (["dlq", "replay"], ["dlq", "discard"], ["outbox", "retry"], ["outbox", "skip"]):
        without = bank.run(*command, "bank", letter["id"])
        assert (without.code, "Missing option '--reason'" in without.err) == (2, True)
        bank.run(*command, "bank", letter["id"], "--reason", " ").fails(2, "Say why")
    (bank.root / ".eventmesh/bank.db").rename(bank.root / "elsewhere.db")
    for command in (["dlq", "replay"], ["dlq", "discard"]):
        away = bank.run(*command, "bank", "--all", "--reason", WHY)
        away.fails(3, "is not there", "EVENTMESH_BANK_DATABASE_URL")
    (bank.root / "elsewhere.db").rename(bank.root / ".eventmesh/bank.db")
    assert len(bank.letters()) == 1
    assert recorded(bank) == []


async def test_where_a_service_has_no_database_its_operators_actions_are_logged(
    project: Project, put: Put, attributes: Callable[..., dict[str, str]]
) -> None:
    project.service(
        "from eventmesh import Event, Reject, Service\n"
        "class Seen(Event, name='web.seen', version=1):\n"
        "    page: str\n"
        "service = Service('web')\n"
        "@service.subscriber(Seen)\n"
        "async def count(event: Seen) -> None:\n"
        "    raise Reject('nobody counts')\n",
        name="web",
    )
    worker = project.start("worker", "web")
    worker.until_says("worker is ready")
    seen = attributes(type="web.seen", source="/web", dataschema="urn:eventmesh:web.seen:1")
    await put(project, seen, b'{"page": "/"}')
    project.letters(service="web")
    discard = project.start("dlq", "discard", "web", "--all", "--reason", WHY)
    discard.ended().succeeds("1 dead letter(s) discarded")
    acts, acted = (line for line in discard.lines() if line["event"].startswith("operator "))
    assert (acts["event"], acted["event"]) == ("operator acts", "operator has acted")
    assert (acts["who"], acts["reason"]) == (getpass.getuser(), WHY)
    assert (acts["what"], acts["subject"]) == ("discard dead letters", "web.count")
    assert acted["outcome"] == "1 of 1 discarded"
    worker.drain()


def test_a_retried_and_a_skipped_message_of_the_outbox_are_recorded(bank: Project) -> None:
    bank.run("db", "upgrade", "bank").succeeds()
    bank.python(DEPOSIT.replace("OWNERS", "'ab'")).succeeds()
    with closing(sqlite3.connect(bank.root / ".eventmesh/bank.db")) as connection:
        parked = "UPDATE eventmesh_outbox SET parked = 1, attempts = 10, last_error = 'no'"
        connection.execute(parked)
        connection.commit()
    first, second = json.loads(bank.run("outbox", "list", "bank", "--json").succeeds())
    bank.run("outbox", "retry", "bank", first["id"], "--reason", WHY).succeeds()
    bank.run("outbox", "skip", "bank", second["id"], "--yes", "--reason", "sent twice").succeeds()
    retry, skip = recorded(bank)
    assert (retry["what"], retry["reason"], retry["subject"]) == ("retry parked", WHY, "bank")
    assert retry["details"] == {"number": 1, "ids": [first["id"]]}
    assert retry["outcome"] == "1 to be published again"
    assert (skip["what"], skip["outcome"]) == ("skip parked", "skipped")
    assert skip["details"]["message"]["attributes"]["partitionkey"] == "b"
    worker = bank.worker()
    until(lambda: "a has 0.01" in worker.out, "the retried deposit")
    worker.drain()
