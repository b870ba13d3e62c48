"""Misspelt variables, and variables of the file `.env`, in commands as a user runs them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Project


@pytest.fixture
def misspelt(bank: Project) -> Project:
    """The bank with one misspelt variable in the environment and one in the file."""
    bank.environment["EVENTMESH_BROKER_URI"] = "redis://127.0.0.1:1"
    bank.write(".env", "EVENTMESH_AA_DATABASE_URL=postgresql://127.0.0.1:1/x\nOTHER=1\n")
    return bank


def test_a_worker_logs_misspelt_variables_and_its_settings(misspelt: Project) -> None:
    worker = misspelt.worker()
    told = [
        line for line in worker.lines() if line["event"] == "unknown environment variable ignored"
    ]
    assert {(line["variable"], line["did_you_mean"]) for line in told} == {
        ("EVENTMESH_BROKER_URI", "EVENTMESH_BROKER_URL"),
        ("EVENTMESH_AA_DATABASE_URL", "EVENTMESH_BANK_DATABASE_URL"),
    }
    [ready] = [line for line in worker.lines() if line["event"] == "worker is ready"]
    assert ready["broker"] == "sqlite:///.eventmesh/broker.db"
    assert ready["prefix"] == misspelt.prefix
    assert ready["databases"] == {"bank": "sqlite:///.eventmesh/bank.db"}
    worker.drain()


def test_a_memory_broker_with_several_workers_logs_a_warning(bank: Project) -> None:
    worker = bank.worker("--workers", "2", processes=2, EVENTMESH_BROKER_URL="memory://")
    [line] = [
        line
        for line in worker.lines()
        if line["event"] == "memory broker not shared between processes"
    ]
    assert (line["level"], line["workers"]) == ("warning", 2)
    worker.drain()


def test_a_program_with_an_unreachable_database_shows_one_error_without_a_chain(
    bank: Project,
) -> None:
    bank.write(
        "send.py",
        "import asyncio\n"
        "from services.bank.service import service\n"
        "async def main():\n"
        "    async with service: ...\n"
        "asyncio.run(main())\n",
    )
    url = "postgresql://ada:s3cr3t@127.0.0.1:1/bank"
    program = bank.start_file("send.py", EVENTMESH_BANK_DATABASE_URL=url).ended()
    assert program.err.count("Traceback") == 1
    assert program.err.splitlines()[-1].startswith(
        "eventmesh.errors.Unreachable: The database of service 'bank'"
    )


def test_every_command_that_connects_warns_of_misspelt_variables(misspelt: Project) -> None:
    misspelt.run("db", "upgrade", "bank").succeeds()
    for ended in misspelt.run_all(
        ["db", "upgrade", "bank"],
        ["dlq", "list", "bank", "--json"],
        ["outbox", "list", "bank", "--json"],
        ["schema", "inventory", "bank", "--json"],
    ):
        assert ended.code == 0, ended.said
        assert ended.err.splitlines() == [
            "Warning: EVENTMESH_AA_DATABASE_URL is not a setting of EventMesh and is ignored. "
            "Did you mean EVENTMESH_BANK_DATABASE_URL?",
            "Warning: EVENTMESH_BROKER_URI is not a setting of EventMesh and is ignored. "
            "Did you mean EVENTMESH_BROKER_URL?",
        ]
        if not ended.out.startswith("bank: "):
            json.loads(ended.out)


def test_a_worker_reads_the_env_file_and_shows_no_password(bank: Project) -> None:
    bank.write(
        ".env",
        "EVENTMESH_BROKER_URL=sqlite:///data/messages.db\n"
        "EVENTMESH_BANK_DATABASE_URL='sqlite:///data/rows.db?password=s3cr3t'\n",
    )
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = "sqlite:///data/of:bank@home.db"
    worker = bank.worker()
    [ready] = [line for line in worker.lines() if line["event"] == "worker is ready"]
    assert ready["broker"] == "sqlite:///data/messages.db"
    assert ready["databases"] == {"bank": "sqlite:///data/of:***@home.db"}
    assert (bank.root / "data/messages.db").exists()
    assert (bank.root / "data/of:bank@home.db").exists()
    assert not (bank.root / ".eventmesh").exists()
    worker.drain()
