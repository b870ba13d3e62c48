"""Log lines: which fields each delivery has, and that no line contains a password."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support.pages import BLOCK, ROOT

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

Attributes = Callable[..., dict[str, str]]

OF_A_DELIVERY = {"service", "subscription", "message_id", "name", "correlation_id"}
GOOD = b'{"owner": "ada", "cents": 1250}'


async def test_piped_log_lines_are_json_and_name_their_message(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    worker = bank.worker(EVENTMESH_LOG_LEVEL="debug")
    good = attributes(correlationid="the-whole-story")
    broken, garbage, second = attributes(), attributes(), attributes()
    await put(bank, good, GOOD)
    await put(bank, broken, b'{"owner": "broken", "cents": 1}')
    await put(bank, garbage, b"{")
    worker.until_says("message handled", 2)  # the command's and the event's
    worker.until_says("message dead-lettered", 2)
    await put(bank, second, b'{"owner": "broken", "cents": 1}')
    worker.until_says("message dead-lettered", 3)
    worker.drain()

    lines = [json.loads(line) for line in worker.err.splitlines()]  # every line is JSON
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)

    def about(message: dict[str, str], event: str) -> dict[str, Any]:
        """The line for this message and event, after a check of its context."""
        line = next(
            line
            for line in lines
            if line["event"] == event and line.get("message_id") == message["id"]
        )
        correlation = message.get("correlationid", message["id"])
        assert {name: line.get(name) for name in OF_A_DELIVERY} == {
            "service": "bank",
            "subscription": "bank.deposit",
            "message_id": message["id"],
            "name": "bank.deposit",
            "correlation_id": correlation,
        }
        return line

    assert about(good, "depositing")["cents"] == 1250  # structlog, in a handler
    about(good, "depositing plainly")  # the standard library's logging, in a handler
    assert about(good, "message handled")["level"] == "debug"
    retry = about(broken, "message will be retried")
    assert (retry["level"], retry["attempt"]) == ("warning", 1)
    assert "no such branch" in retry["error"]
    dead = about(broken, "message dead-lettered")
    assert (dead["level"], dead["attempt"]) == ("error", 2)
    assert "Invalid JSON" in about(garbage, "message dead-lettered")["reason"]

    # The first failure of its kind and every dead letter have the traceback.
    for line in (retry, dead, about(second, "message dead-lettered")):
        assert line["exception"].startswith("Traceback (most recent call last)")
        assert "services/bank/service.py" in line["exception"]
        assert line["exception"].endswith("ValueError: no such branch\n")
    assert "exception" not in about(second, "message will be retried")
    assert "exception" not in about(garbage, "message dead-lettered")

    [told] = [line for line in lines if line.get("name") == "bank.deposited"]
    assert told.keys() >= OF_A_DELIVERY
    assert told["correlation_id"] == "the-whole-story"
    assert told["message_id"] != good["id"]
    of_deliveries = [line for line in lines if line["logger"] == "eventmesh.delivery"]
    assert len(of_deliveries) == 7
    assert all(line.keys() >= OF_A_DELIVERY for line in of_deliveries)


async def test_a_skipped_duplicate_is_logged(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    worker = bank.worker()
    same = attributes()
    await put(bank, same, GOOD)
    await put(bank, same, GOOD)
    worker.until_says("duplicate skipped")
    worker.until_prints("ada has 12.50")
    worker.drain()
    [line] = [line for line in worker.lines() if line["event"] == "duplicate skipped"]
    assert line.keys() >= OF_A_DELIVERY
    assert line["message_id"] == same["id"]
    assert "25.00" not in worker.out


async def test_the_log_level_and_format_can_be_set(
    bank: Project, attributes: Attributes, put: Put, wait_until: Callable[..., Any]
) -> None:
    text = bank.start("worker", "bank", EVENTMESH_LOG_FORMAT="text")
    wait_until(lambda: "worker is ready" in text.err, "a line of text")
    text.drain()
    assert text.lines() == []
    assert "\x1b[" not in text.err  # no colours in a file

    quiet = bank.start("worker", "bank", EVENTMESH_LOG_LEVEL="warning")
    await put(bank, attributes(), GOOD)
    quiet.until_prints("ada has 12.50")
    assert quiet.drain().err == ""


async def test_a_message_cannot_forge_log_lines(
    bank: Project, attributes: Attributes, put: Put, wait_until: Callable[..., Any]
) -> None:
    bank.change_service('ValueError("no such branch")', "ValueError(command.note)")
    worker = bank.start("worker", "bank", EVENTMESH_LOG_FORMAT="text")
    note = r"\u001b[2Jbad\n2026-01-01T00:00:00Z [error    ] forged"
    data = r'{"owner": "broken", "cents": 1, "note": "NOTE"}'.replace("NOTE", note)
    await put(bank, attributes(correlationid="\x1b[2J", id="a\nb"), data.encode())
    wait_until(lambda: worker.err.count("ValueError") >= 4, "two failures with their tracebacks")
    worker.drain()
    assert "\x1b" not in worker.err
    assert "forged" in worker.err
    assert not any(line.startswith("2026-01-01") for line in worker.err.splitlines())
    assert "    Traceback (most recent call last):" in worker.err


async def test_a_message_cannot_put_control_characters_into_json_logs(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    bank.change_service('ValueError("no such branch")', "ValueError(command.note)")
    worker = bank.worker()
    evil = "\x9b2J\x7f\u202eforged\u2028\u0085\U000e0001 \U0001f642"
    data = json.dumps({"owner": "broken", "cents": 1, "note": evil})
    await put(bank, attributes(), data.encode())
    worker.until_says("message dead-lettered")
    worker.drain()
    assert worker.err.replace("\n", "").isprintable()
    [dead] = [line for line in map(json.loads, worker.err.splitlines()) if "reason" in line]
    assert evil in dead["reason"]


@pytest.mark.parametrize("broker", ["redis", "amqp"])
async def test_no_output_contains_a_password(
    broker: str,
    on: Callable[[str], Project],
    postgres_url: str,
    attributes: Attributes,
    put: Put,
) -> None:
    bank = on(broker)
    bank.environment |= {
        "EVENTMESH_BANK_DATABASE_URL": postgres_url,
        "EVENTMESH_LOG_LEVEL": "debug",
    }
    passwords = [
        urlsplit(bank.environment["EVENTMESH_BROKER_URL"]).password,
        urlsplit(postgres_url).password,
    ]
    assert all(passwords)
    upgrade = bank.run("db", "upgrade", "bank")
    upgrade.succeeds()
    worker = bank.worker()
    await put(bank, attributes(), GOOD)
    await put(bank, attributes(), b'{"owner": "broken", "cents": 1}')
    worker.until_prints("ada has 12.50")
    worker.until_says("message dead-lettered")
    worked = worker.drain()
    listed = bank.run("dlq", "list", "bank", "--json")
    assert json.loads(listed.succeeds())
    for ended in (upgrade, worked, listed):
        for password in passwords:
            assert password not in ended.said


def test_a_program_sends_its_lines_to_the_standard_library_as_documented(project: Project) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (documented,) = (text for _, text in BLOCK.findall(page) if text.startswith("# logs.py"))
    project.write("logs.py", documented)
    project.write(
        "program.py",
        "import logs\n"
        "import structlog\n"
        "log = structlog.get_logger('eventmesh.relay').bind(service='bank')\n"
        "log.debug('not shown')\n"
        "log.warning('outbox relay waiting for broker', error='away')\n"
        "try:\n"
        "    {}['missing']\n"
        "except KeyError as error:\n"
        "    log.error('outbox relay failed, trying again', exc_info=error)\n",
    )
    ended = project.start_program(sys.executable, "program.py").ended()
    ended.succeeds()
    assert ended.out == ""
    first, second, *traceback = ended.err.splitlines()
    assert first.endswith(
        " WARNING eventmesh.relay: event='outbox relay waiting for broker' service='bank' "
        "error='away'"
    )
    assert second.endswith("event='outbox relay failed, trying again' service='bank'")
    assert (traceback[0], traceback[-1]) == (
        "Traceback (most recent call last):",
        "KeyError: 'missing'",
    )
