"""Messages that can never be handled become dead letters with the reason; all others are
handled."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from eventmesh.clock import SystemClock
from eventmesh.transports.base import DeadLetter, Subscription, TransportOptions
from eventmesh.transports.factory import open_transport
from tests.integration.conftest import BECAUSE

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

Attributes = Callable[..., dict[str, str]]

GOOD = b'{"owner": "ada", "cents": 1250}'
GARBAGE = bytes(range(256))
HUGE = b"x" * 5_000_000
FIELDS = {"id", "subscription", "reason", "attempts", "died_at", "attributes", "data", "error"}
DEPOSIT = Subscription("bank.deposit", ("bank.deposit",))


def bad_messages(attributes: Attributes, broker: str) -> list[tuple[str, dict[str, str], bytes]]:
    """For each message: a part of the reason why it cannot be handled, its attributes and its
    data."""
    bad = [
        ("Invalid JSON: expected value", attributes(), GARBAGE),
        ("Invalid JSON: expected value", attributes(), HUGE),
        ("bank.deposit v1: cents: Field required", attributes(), b'{"owner": "eve"}'),
        (
            "bank.deposit v1: cents: Input should be a valid integer",
            attributes(),
            b'{"owner": "eve", "cents": "lots"}',
        ),
        (
            "version 7 of bank.deposit is not known here",
            attributes(dataschema="urn:eventmesh:bank.deposit:7"),
            b'{"owner": "grace", "cents": 700}',
        ),
        ("dataschema is ''", attributes(dataschema=""), GOOD),
        (
            "not a CloudEvents message: specversion, id, source missing",
            attributes(specversion="", id="", source=""),
            GOOD,
        ),
    ]
    if broker != "sqlite":  # finds the subscriptions of a message by its type
        bad.append(("specversion, id, source, type missing", {}, GARBAGE))
    return bad


async def kept(project: Project) -> list[DeadLetter]:
    """The dead letters of the bank's deposits, with their original bytes."""
    options = TransportOptions(prefix=project.prefix)
    url = project.environment.get(
        "EVENTMESH_BROKER_URL", f"sqlite:///{project.root}/.eventmesh/broker.db"
    )
    async with open_transport(url, SystemClock(), options) as transport:
        return list(await transport.dead_letters(DEPOSIT, limit=100))


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_an_unreadable_message_becomes_a_dead_letter_with_its_original_bytes(
    broker: str, on: Callable[[str], Project], attributes: Attributes, put: Put
) -> None:
    bank = on(broker)
    worker = bank.worker()
    bad = bad_messages(attributes, broker)
    for _, headers, data in bad:
        await put(bank, headers, data)
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada has 12.50")
    worker.until_says("message dead-lettered", len(bad))

    letters = bank.letters(len(bad))
    assert len(letters) == len(bad)
    for reason, headers, data in bad:
        [letter] = [
            letter
            for letter in letters
            if reason in letter["reason"] and letter["data"] == shown(data)
        ]
        assert set(letter) - {"data_base64"} == FIELDS
        assert datetime.fromisoformat(letter["died_at"]).tzinfo is not None
        assert letter["subscription"] == "bank.deposit"
        assert letter["attempts"] == 1
        assert letter["attributes"] == headers
        assert "\n" not in letter["reason"]
        assert "Traceback" not in letter["reason"]
    assert sorted(letter.envelope.data for letter in await kept(bank)) == sorted(
        data for _, _, data in bad
    )

    # The unknown version becomes known, and the message is replayed without loss.
    worker.drain()
    bank.change_service('name="bank.deposit", version=1', 'name="bank.deposit", version=7')
    worker = bank.worker()
    [unknown] = [letter["id"] for letter in letters if "version 7" in letter["reason"]]
    bank.run("dlq", "replay", "bank", *BECAUSE, unknown).succeeds("1 dead letter(s) replayed")
    worker.until_prints("grace has 7.00")

    rest = [letter["id"] for letter in letters if letter["id"] != unknown]
    bank.run("dlq", "discard", "bank", *BECAUSE, rest[0]).succeeds("1 dead letter(s) discarded")
    assert {letter.id for letter in await kept(bank)} == set(rest[1:])
    bank.run("dlq", "discard", "bank", *BECAUSE, "--all").succeeds(
        f"{len(rest) - 1} dead letter(s)"
    )
    assert await kept(bank) == []
    worker.drain()


def shown(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


async def test_a_dead_letter_is_shown_and_is_dead_lettered_again_if_replayed_without_a_fix(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    worker = bank.worker()
    await put(bank, attributes(), GARBAGE)
    worker.until_says("message dead-lettered")
    [letter] = bank.letters()
    text, as_json, listed = bank.run_all(
        ["dlq", "show", "bank", letter["id"]],
        ["dlq", "show", "bank", letter["id"], "--json"],
        ["dlq", "list", "bank"],
    )
    text.succeeds(*(f"{name}:" for name in FIELDS), "\n    type = ", letter["id"])
    assert "\x1b" not in text.out  # control characters do not reach the terminal
    assert json.loads(as_json.succeeds()) == letter
    listed.succeeds(letter["id"], letter["reason"], "1 dead letter(s)")
    bank.run("dlq", "replay", "bank", *BECAUSE, "--all").succeeds("1 dead letter(s) replayed")
    worker.until_says("message dead-lettered", 2)
    worker.drain()
    [again] = await kept(bank)
    assert again.envelope.data == GARBAGE
    assert again.id != letter["id"]


async def test_a_list_shows_the_beginning_of_a_long_reason_and_show_all_of_it(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    bank.change_service('Reject("the account is closed")', 'Reject("closed: " + "x" * 5_000)')
    worker = bank.worker()
    await put(bank, attributes(), b'{"owner": "refused", "cents": 1}')
    worker.until_says("message dead-lettered")
    worker.drain()
    [letter] = bank.letters()
    assert letter["reason"] == "closed: " + "x" * 5_000
    listed = bank.run("dlq", "list", "bank").succeeds()
    assert listed.splitlines()[0].endswith("  closed: " + "x" * 191 + "…")
    bank.run("dlq", "show", "bank", letter["id"]).succeeds(letter["reason"])


async def test_control_characters_of_a_message_never_reach_the_terminal_or_add_a_line(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    evil = "\x1b[2J\u202e\r\n\u2028\x00\x9bid: forged"
    bank.change_service('Reject("the account is closed")', "Reject(command.note)")
    worker = bank.start("worker", "bank", EVENTMESH_LOG_FORMAT="text")
    data = json.dumps({"owner": "refused", "cents": 1, "note": evil}, ensure_ascii=False)
    await put(bank, attributes(), data.encode())
    [letter] = bank.letters()
    worker.drain()
    assert letter["reason"] == evil.replace("\0", "\\x00")  # JSON has the complete text
    listed, shown = bank.run_all(["dlq", "list", "bank"], ["dlq", "show", "bank", letter["id"]])
    assert len(listed.succeeds().splitlines()) == 2
    assert [line for line in shown.succeeds().splitlines() if line.startswith("id: ")] == [
        f"id: {letter['id']}"
    ]
    for said in (listed.out, shown.out, worker.err):
        assert not {char for char in evil if not char.isprintable()} - {"\n"} & {*said}
        assert "\\x1b[2J" in said


async def test_a_message_whose_handler_fails_or_rejects_becomes_a_dead_letter(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    worker = bank.worker()
    await put(bank, attributes(), b'{"owner": "broken", "cents": 1}')
    await put(bank, attributes(), b'{"owner": "refused", "cents": 1}')
    worker.until_says("message dead-lettered", 2)
    letters = {letter["reason"]: letter for letter in bank.letters(2)}
    failed = letters.pop("failed 2 times: ValueError: no such branch")
    refused = letters.pop("the account is closed")
    assert not letters
    assert (failed["attempts"], refused["attempts"]) == (2, 1)
    # The traceback is for the author of the handler.
    assert "services/bank/service.py" in failed["error"]
    assert balances(bank) == {}

    worker.drain()
    bank.change_service('raise ValueError("no such branch")', "pass")
    worker = bank.worker()
    bank.run("dlq", "replay", "bank", *BECAUSE, failed["id"]).succeeds("1 dead letter(s) replayed")
    worker.until_prints("broken has 0.01")
    worker.drain()


PUBLISH_5_MB = """
import asyncio
from services.bank.service import Account, Deposit, deposits, service

async def main() -> None:
    async with service:
        try:
            await deposits.publish(Deposit(owner="ada", cents=1, note="x" * 5_000_000))
        except Exception as error:
            print(type(error).__name__, error)
        try:
            async with service.transaction() as tx:
                tx.session.add(Account(owner="eve", cents=1))
                tx.send(Deposit(owner="ada", cents=1))
                tx.send(Deposit(owner="ada", cents=1, note="x" * 5_000_000))
        except Exception as error:
            print(type(error).__name__, error)

asyncio.run(main())
"""


def test_publishing_5_mb_is_an_error_and_stores_nothing(bank: Project) -> None:
    for line in bank.python(PUBLISH_5_MB).succeeds().splitlines():
        assert line.startswith("MessageTooLarge bank.deposit with key 'ada' has 5,000,")
        assert "the limit is 1,048,576" in line
        assert "EVENTMESH_MAX_MESSAGE_BYTES" in line
        assert line.endswith(".")
    assert rows(bank, "eventmesh_outbox") == 0
    assert balances(bank) == {}


async def test_returning_5_mb_rolls_the_handler_back_and_dead_letters_its_message(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    worker = bank.worker()
    await put(bank, attributes(), b'{"owner": "big", "cents": 1}')
    await put(bank, attributes(), GOOD)
    worker.until_says("message dead-lettered")
    worker.until_prints("ada has 12.50")
    worker.drain()
    [letter] = bank.letters()
    assert letter["data"] == '{"owner": "big", "cents": 1}'
    assert "bank.deposited with key 'big' has 5,000," in letter["reason"]
    assert "EVENTMESH_MAX_MESSAGE_BYTES" in letter["reason"]
    assert balances(bank) == {"ada": 1250}
    assert rows(bank, "eventmesh_outbox") == 0


def balances(bank: Project) -> dict[str, int]:
    return dict(select(bank, "SELECT owner, cents FROM accounts"))


def rows(bank: Project, table: str) -> int:
    [(count,)] = select(bank, f"SELECT count(*) FROM {table}")  # noqa: S608 - a test's own word
    return int(count)


def select(bank: Project, statement: str) -> list[Any]:
    connection = sqlite3.connect(bank.root / ".eventmesh/bank.db")
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_an_event_of_the_bank_from_another_source_is_dead_lettered(
    broker: str, on: Callable[[str], Project], attributes: Attributes, put: Put
) -> None:
    bank = on(broker)
    worker = bank.worker()
    forged = attributes(
        type="bank.deposited", source="/orders", dataschema="urn:eventmesh:bank.deposited:1"
    )
    await put(bank, forged, b'{"owner": "mallory", "balance": 100, "note": ""}')
    await put(bank, attributes(), GOOD)  # a command, from /test
    [letter] = bank.letters()
    worker.until_prints("ada has 12.50")
    worker.drain()
    assert "mallory" not in worker.out
    assert letter["attributes"]["source"] == "/orders"
    assert "bank.deposited comes from the source '/orders'" in letter["reason"]

    bank.change_service(
        "@service.subscriber(Deposited)", '@service.subscriber(Deposited, sources=["/orders"])'
    )
    worker = bank.worker()
    bank.run("dlq", "replay", "bank", *BECAUSE, letter["id"]).succeeds()
    worker.until_prints("mallory has 1.00")
    worker.drain()
