"""A command in a forked process prints what it would print in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.integration.conftest import Ended, Project

BROKEN = "raise RuntimeError('not a service')\n"


@pytest.mark.parametrize(
    "command",
    [
        ("outbox", "stats", "bank"),
        ("outbox", "list", "bank", "--json"),
        ("dlq", "list", "bank"),
        ("schema", "check"),
        ("schema", "show", "bank.deposited"),
        ("asyncapi", "bank"),
        ("db", "upgrade", "bank"),
        ("outbox", "list"),
        ("outbox", "list", "nobody"),
        ("schema", "check", "--format", "none"),
        ("outbox",),
    ],
    ids=" ".join,
)
def test_it_prints_the_same(bank: Project, command: Sequence[str]) -> None:
    bank.run("db", "upgrade", "bank").succeeds()
    bank.run("schema", "freeze").succeeds()
    assert shown(bank.run(*command)) == shown(bank.start(*command).ended())


def test_an_error_is_printed_in_the_same_way(bank: Project) -> None:
    bank.service(BROKEN)
    forked, started = bank.run("schema", "check"), bank.start("schema", "check").ended()
    assert forked.code == started.code != 0
    assert shown(forked) == shown(started)


def test_each_has_its_own_environment_and_folder(projects: Callable[[], Project]) -> None:
    first, second = projects(), projects()
    first.service()
    for file in ("a.db", "b.db"):
        nowhere = first.run(
            "outbox", "stats", "bank", EVENTMESH_BANK_DATABASE_URL=f"sqlite:///{file}"
        )
        assert file in nowhere.fails(3)
    first.run("schema", "freeze").succeeds()
    assert (first.root / "schemas").exists()
    assert second.run("schema", "freeze").code != 0
    assert not (second.root / "schemas").exists()


def shown(ended: Ended) -> tuple[int, str, str]:
    return ended.code, ended.out, ended.err
