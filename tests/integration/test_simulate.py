"""`eventmesh simulate`: what it tries, what it finds, and what it says of a wrong workload."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.integration.conftest import BANK, Project

WORKLOAD = """
from services.bank.service import Account, Deposit, deposits, service
from sqlalchemy import select

async def workload(mesh):
    for cents in (5, 7):
        await deposits.publish(Deposit(owner="ada", cents=cents))

def predicates(mesh):
    @mesh.always
    def nobody_has_more_than_was_given(read):
        return all(account.cents <= MOST for account in read(service).scalars(select(Account)))
"""


@pytest.fixture
def bank(project: Project) -> Project:
    project.service(BANK)
    return project


def test_messages_are_generated_and_the_report_says_what_was_tried(bank: Project) -> None:
    kept = str(Path(".hypothesis").absolute())  # or Hypothesis reads all of EventMesh's source
    said = bank.run("simulate", "--seeds", "8", "--json", HYPOTHESIS_STORAGE_DIRECTORY=kept)
    found = json.loads(said.succeeds())
    assert found["runs"] == 8
    assert found["handlers"]["bank.deposit"] >= 8 * 3
    assert found["failure"] is None
    assert found["faults"].get("kill", 0) >= len(found["killed_at"]) > 0
    assert found["places"] > len(found["killed_at"])


def test_a_workload_that_holds_passes(bank: Project) -> None:
    bank.write("workload.py", f"MOST = 12\n{WORKLOAD}")
    said = bank.run("simulate", "bank", "--workload", "workload.py", "--seeds", "4")
    shown = said.succeeds("4 runs in ", "handlers called: bank.deposit", "no run failed")
    assert "ada has" not in shown


def test_what_does_not_hold_is_shown_and_can_be_run_again(bank: Project) -> None:
    bank.write("workload.py", f"MOST = 5\n{WORKLOAD}")
    failed = bank.run("simulate", "bank", "--workload", "workload.py", "--workers", "2")
    assert failed.code == 1, failed.said
    assert "nobody_has_more_than_was_given must hold always, and does not" in failed.out
    assert "deposit #1" in failed.out
    [again] = [line for line in failed.out.splitlines() if line.startswith("Run it again: ")]
    command = shlex.split(again.removeprefix("Run it again: "))
    assert command[1:7] == ["simulate", "bank", "--workload", "workload.py", "--workers", "2"]
    replayed = bank.run(*command[1:])
    assert replayed.code == 1, replayed.said
    assert "nobody_has_more_than_was_given" in replayed.out


def test_pytest_fail_in_a_workload_is_shown_like_an_assertion(bank: Project) -> None:
    text = "    await mesh.quiet()\n    pytest.fail('the balance is wrong')\n\ndef predicates"
    text = f"import pytest\nMOST = 12\n{WORKLOAD}".replace("\ndef predicates", text)
    bank.write("workload.py", text)
    failed = bank.run("simulate", "bank", "--workload", "workload.py")
    assert failed.code == 1, failed.said
    assert "Failed: the balance is wrong" in failed.out
    assert failed.out.startswith("1 run in ")
    assert "deposit #1" in failed.out
    assert "Run it again: eventmesh simulate" in failed.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["workload.py has no workload: write `async def workload(mesh)`"]),
        ("def workload(mesh): ...", ["workload.py has no workload"]),
        ("async def workload(): ...", ["must be a function of one argument: workload(mesh)"]),
        ("def (", ["workload.py, line 1 cannot be loaded", "SyntaxError"]),
        ("\n1 / 0", ["workload.py, line 2 cannot be loaded", "ZeroDivisionError"]),
        ("async def workload(mesh):\n    {}['x']", ["workload.py, line 2 raised KeyError"]),
        (
            "import time\nasync def workload(mesh):\n    time.sleep(9)",
            ["workload.py:3 in workload sleeps"],
        ),
    ],
)
def test_a_wrong_workload_is_named(bank: Project, text: str, words: list[str]) -> None:
    bank.write("workload.py", text)
    bank.run("simulate", "--workload", "workload.py", "--seeds", "2").fails(2, *words)


def test_a_workload_that_never_ends_is_ended(bank: Project) -> None:
    bank.write(
        "workload.py",
        "import asyncio\nasync def workload(mesh):\n    while True: await asyncio.sleep(0)\n",
    )
    bank.run("simulate", "--workload", "workload.py").fails(1, "workload.py:3 in workload")


def test_wrong_options_are_named(bank: Project) -> None:
    bank.run("simulate", "--replay", "nonsense").fails(2, "'nonsense' is not a plan")
    bank.run("simulate", "--workload", "absent.py").fails(2, "There is no file", "absent.py")
    bank.run("simulate", "absent").fails(2, "There is no service 'absent'")


@pytest.mark.parametrize("package", ["time_machine", "hypothesis", "pytest"])
def test_a_missing_package_is_named(bank: Project, package: str) -> None:
    bank.write(f"{package}.py", f"raise ModuleNotFoundError('absent', name={package!r})\n")
    bank.environment["PYTHONPATH"] = str(bank.root)
    ended = bank.start_program("eventmesh", "simulate", "--seeds", "1").ended()
    ended.fails(2, f"needs {package}: pip install 'eventmesh[testing]'")
