"""Facts are gathered from real services; a fault of a mesh is found as one problem, and the shop
has none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path

import pytest
from faststream.redis import RedisBroker
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table

from eventmesh import Command, Event, Saga, Service, Transaction, step
from eventmesh.contracts.fleet import Facts
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.problem import Place, Problem
from eventmesh.errors import UsageError
from eventmesh.integrations.faststream.redis import RedisMesh
from eventmesh.review.checks import review
from eventmesh.review.fleet_facts import collect_facts, database_name
from eventmesh.review.python_sources import Sources
from eventmesh.runtime.declaring.discovery import load_services
from eventmesh.runtime.declaring.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 11, 21)


class Asked(Event, name="till.asked", version=1, key="account"):
    account: str


class Pay(Command, name="bank.pay", version=1, key="account"):
    account: str


class Payed(Event, name="bank.payed", version=1, key="account"):
    account: str


class State(BaseModel):
    account: str


class Settle(Saga[State], name="till.settle", started_by=Asked):
    def begin(event: Asked) -> State:  # noqa: N805
        return State(account=event.account)

    @step(ok=Payed)
    def pay(state: State) -> Pay:  # noqa: N805
        return Pay(account=state.account)

    flow = pay


def gathered(*services: Service, folder: Path = ROOT, **urls: str) -> Facts:
    settings = Settings(database_urls=urls)
    return collect_facts(services, read_locks(folder / "schemas"), settings, Sources(folder), {})


# What is gathered


def test_what_handlers_read_return_and_send_is_gathered() -> None:
    bank = Service("bank")

    @bank.subscriber(Pay)
    async def pay(command: Pay, tx: Transaction) -> Payed: ...

    till = Service("till")
    till.publisher(Pay)

    @till.subscriber(Payed)
    async def one(event: Payed) -> None: ...

    @till.subscriber(Payed, name="two.again")
    async def two(event: Payed) -> None: ...

    found = gathered(bank, till)
    assert found.services == ("bank", "till")
    assert [(each.service, each.model, each.writes) for each in found.publications] == [
        ("bank", Payed, 1),
        ("till", Pay, 1),
    ]
    assert [(each.service, each.model, each.subscriptions) for each in found.readings] == [
        ("bank", Pay, ("bank.pay",)),
        ("till", Payed, ("till.one", "till.two.again")),
    ]
    lines = Path(__file__).read_text().splitlines()
    place = found.publications[1].place
    assert place is not None
    assert place.file == "tests/schemas/test_fleet_of_services.py"
    assert lines[place.line - 1].startswith("class Pay(")


def test_what_a_saga_reads_and_sends_is_gathered() -> None:
    till = Service("till")
    till.include(Settle)
    found = gathered(till)
    assert [each.model for each in found.publications] == [Pay]
    assert {(each.model, each.subscriptions) for each in found.readings} == {
        (Asked, ("till.settle.saga",)),
        (Payed, ("till.settle.saga",)),
    }


def test_a_handler_that_runs_in_a_faststream_app_is_gathered() -> None:
    service = Service("till")
    mesh = RedisMesh(service, RedisBroker())

    @mesh.subscriber(Payed)
    async def note(event: Payed) -> None: ...

    [reading] = gathered(service).readings
    assert (reading.model, reading.subscriptions) == (Payed, ("till.note",))


def test_the_version_that_a_downcaster_writes_is_gathered() -> None:
    class Later(Event, name="bank.payed", version=2):
        number: str

    @Later.downcaster(to_version=1)
    def back(data: dict[str, str]) -> dict[str, str]:
        return {"account": data["number"]}

    bank = Service("bank")
    bank.publisher(Later, version=1)
    [publication] = gathered(bank).publications
    assert publication.writes == 1


def test_databases_and_their_tables_are_gathered() -> None:
    metadata = MetaData()
    Table("accounts", metadata, Column("id", Integer, primary_key=True))
    bank = Service("bank", metadata=metadata, shares_database_with=["till"])
    till, deaf = Service("till", metadata=metadata), Service("deaf")
    found = gathered(bank, till, deaf, bank="postgresql://me:secret@DB/money?ssl=require")
    one, two, three = found.databases
    assert one.database == "postgresql://db:5432/money"
    assert (one.given, two.given) == (True, False)
    assert (one.shares_with, two.shares_with) == (("till",), ())
    assert one.tables == {"accounts"}
    assert one.metadata == two.metadata
    assert three.database == ""
    assert "secret" not in repr(found)


def test_the_services_to_share_with_are_a_list() -> None:
    with pytest.raises(UsageError, match=r"write a list of names, such as \['bank'\]"):
        Service("till", shares_database_with="bank")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("postgresql://a:x@db/shop", "postgres://b:y@DB.:5432/shop?ssl=require"),
        ("postgresql://localhost/shop", "postgresql+asyncpg://127.0.0.1:5432/shop"),
        ("postgresql:///shop", "postgresql://[::1]/shop"),
        ("postgresql://me@db", "postgresql://me@db/me"),
        ("postgresql:///shop?host=/run/pg", "postgresql://u@/shop?host=/run/pg&port=5432"),
        ("sqlite:///data/../shop.db", "sqlite+aiosqlite:///shop.db"),
        ("sqlite:///link.db", "sqlite:///shop.db"),
        ("sqlite:///shop.db", "sqlite:////{root}/shop.db?timeout=3"),
        ("sqlite:///file:shop.db?uri=true", "sqlite:///shop.db"),
    ],
)
def test_one_database_has_one_name(tmp_path: Path, one: str, two: str) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "shop.db")
    first, second = (
        database_name(url.format(root=str(tmp_path).lstrip("/")), "orders", tmp_path)
        for url in (one, two)
    )
    assert first == second != ""


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("postgresql://db/shop", "postgresql://db/Shop"),
        ("postgresql://db/shop", "postgresql://db:5433/shop"),
        ("postgresql://db/shop", "postgresql://other/shop"),
        ("postgresql:///shop?host=/run/a", "postgresql:///shop?host=/run/b"),
        ("sqlite:///shop.db", "sqlite:///Shop2.db"),
        ("sqlite:///shop.db", "postgresql:///shop.db"),
    ],
)
def test_two_databases_have_two_names(tmp_path: Path, one: str, two: str) -> None:
    assert database_name(one, "a", tmp_path) != database_name(two, "a", tmp_path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory"])
def test_a_database_in_memory_is_nobody_else_s(tmp_path: Path, url: str) -> None:
    assert database_name(url, "orders", tmp_path) == ""


def test_a_url_that_is_none_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="EVENTMESH_ORDERS_DATABASE_URL") as raised:
        database_name("mysql://me:secret@db/shop", "orders", tmp_path)
    assert "secret" not in str(raised.value)


# Whole projects


TILL = """
from eventmesh import Command, Event, Service, Transaction
from sqlalchemy import MetaData

class Pay(Command, name="bank.pay", version=1, key="account"):
    account: str
    cents: int

class Payed(Event, name="bank.payed", version=1, key="account"):
    account: str

service = Service("till", metadata=MetaData())
service.publisher(Pay)

@service.subscriber(Payed)
async def note(event: Payed, tx: Transaction) -> None: ...
"""
BANK = """
from eventmesh import Command, Event, Service, Transaction

class Pay(Command, name="bank.pay", version=1, key="account"):
    account: str
    cents: int

class Payed(Event, name="bank.payed", version=1, key="account"):
    account: str
    cents: int

service = Service("bank")

@service.subscriber(Pay)
async def pay(command: Pay, tx: Transaction) -> Payed: ...
"""

Project = Callable[..., list[Problem]]


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Mapping[str, str]], list[Service]]]:
    """Writes services, loads them, and forgets them again."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "parts":
                del sys.modules[name]

    def load(files: Mapping[str, str]) -> list[Service]:
        forget()
        lines = ["[tool.eventmesh.services]"]
        for name, text in files.items():
            path = tmp_path / "parts" / name / "service.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            lines.append(f'{name} = "parts.{name}.service:service"')
        (tmp_path / "pyproject.toml").write_text("\n".join(lines))
        return load_services([], tmp_path)

    yield load
    forget()


@pytest.fixture
def found(
    tmp_path: Path, project: Callable[[Mapping[str, str]], list[Service]]
) -> Callable[..., list[Problem]]:
    """What is found in a mesh of till and bank after a change to one of them; frozen before."""

    def run(
        *, freeze_again: bool = False, urls: Mapping[str, str] = {}, **changed: str
    ) -> list[Problem]:
        freeze_all(project({"till": TILL, "bank": BANK}), tmp_path)
        services = project({"till": TILL, "bank": BANK} | changed)
        if freeze_again:
            freeze_all(services, tmp_path)
        settings = Settings(database_urls=urls)
        return review(services, root=tmp_path, settings=settings, today=TODAY)

    return run


def freeze_all(services: list[Service], root: Path) -> None:
    freeze([each for service in services for each in service.registry.owned()], root / "schemas")


def line_of(text: str, start: str) -> int:
    return next(n for n, row in enumerate(text.splitlines(), 1) if row.startswith(start))


def test_the_shop_is_clean(tmp_path: Path) -> None:
    services = load_services([], ROOT)
    freeze_all(services, tmp_path)
    settings = Settings(schemas=tmp_path / "schemas")
    assert review(services, root=ROOT, settings=settings, today=TODAY) == []


def test_a_sound_mesh_is_clean(found: Project) -> None:
    assert found() == []


def test_a_subscriber_that_asks_for_more_than_is_written_breaks(found: Project) -> None:
    till = TILL.replace("    account: str\n\nservice", "    account: str\n    fee: int\n\nservice")
    [problem] = found(till=till)
    assert (problem.rule, problem.subject) == ("EM050", "bank.payed v1")
    assert problem.parties == ("till", "bank")
    assert problem.place == Place("parts/till/service.py", line_of(till, "class Payed"))
    assert problem.witness is not None
    assert "fee" not in problem.witness.document


def test_a_new_version_that_leaves_a_subscriber_behind_is_found(found: Project) -> None:
    bank = BANK.replace('"bank.payed", version=1, key="account"', '"bank.payed", version=2')
    bank = bank.replace("    account: str\n    cents: int\n\nservice", "    number: int\n\nservice")
    bank += "\n@Payed.upcaster(from_version=1)\ndef renamed(data):\n    return {'number': 1}\n"
    problems = found(bank=bank, freeze_again=True)
    [problem] = problems
    assert (problem.rule, problem.subject) == ("EM050", "bank.payed v2")
    assert problem.parties == ("till", "bank")


def test_a_downcaster_gives_the_subscriber_time(found: Project) -> None:
    bank = BANK.replace('"bank.payed", version=1, key="account"', '"bank.payed", version=2')
    bank = bank.replace("    account: str\n    cents: int\n\nservice", "    number: int\n\nservice")
    bank += (
        "\nservice.publisher(Payed, version=1)\n"
        "@Payed.upcaster(from_version=1)\ndef renamed(data):\n    return {'number': 1}\n"
        "@Payed.downcaster(to_version=1)\ndef back(data):\n"
        "    return {'account': str(data['number']), 'cents': 0}\n"
    )
    head, _, tail = bank.partition("@service.subscriber")
    rest, _, casts = tail.partition("@Payed.upcaster")
    bank = head + "@Payed.upcaster" + casts + "\n@service.subscriber" + rest
    assert found(bank=bank, freeze_again=True) == []


def test_a_change_in_place_is_told_once_with_everyone_whom_it_breaks(found: Project) -> None:
    bank = BANK.replace("    account: str\n    cents: int\n\nservice", "    cents: int\n\nservice")
    bank = bank.replace('"bank.payed", version=1, key="account"', '"bank.payed", version=1')
    [problem] = found(bank=bank)
    assert problem.subject == "bank.payed v1"
    assert problem.rule in ("EM031", "EM042")
    assert problem.parties == ("bank", "till")
    assert "till.note" in problem.summary


def test_what_an_owner_cannot_read_of_its_own_is_told_once_with_all_senders(
    found: Project,
) -> None:
    bank = BANK.replace('"bank.pay", version=1', '"bank.pay", version=2')
    bank = bank.replace("    cents: int\n\nclass Payed", "    iban: str\n\nclass Payed")
    [problem] = found(bank=bank, freeze_again=True)
    assert problem.rule == "EM036"
    assert problem.parties == ("bank", "till")
    assert "bank.pay" in problem.summary


def test_an_upcaster_that_fails_is_told_once(found: Project) -> None:
    bank = BANK.replace('"bank.pay", version=1', '"bank.pay", version=2')
    bank = bank.replace("    cents: int\n\nclass Payed", "    iban: str\n\nclass Payed")
    bank += "\n@Pay.upcaster(from_version=1)\ndef up(data):\n    return {'iban': data['x']}\n"
    [problem] = found(bank=bank, freeze_again=True)
    assert problem.rule == "EM037"
    assert problem.parties == ("bank", "till")


def test_what_was_frozen_at_the_baseline_counts_though_it_was_frozen_anew(
    project: Callable[[Mapping[str, str]], list[Service]], tmp_path: Path
) -> None:
    services = project({"bank": BANK})
    freeze(list(services[0].registry.owned()), tmp_path / "before")
    services = project({"bank": BANK.replace("cents: int\n\nservice", "cents: str\n\nservice")})
    freeze_all(services, tmp_path)
    settings, before = Settings(), read_locks(tmp_path / "before")
    found = review(services, root=tmp_path, settings=settings, today=TODAY)
    assert [each.rule for each in found] == ["EM070"]  # the till, which sends, is not among them
    found = review(services, root=tmp_path, settings=settings, today=TODAY, baseline=before)
    [problem] = [each for each in found if each.severity == "error"]
    assert (problem.rule, problem.subject) == ("EM031", "bank.payed v1")


def test_problems_come_in_one_order(found: Project) -> None:
    bank = BANK.replace("-> Payed", "-> None") + "import parts.till.service\n"
    till = TILL.replace("    cents: int\n", "    cents: str\n") + "import parts.bank.service\n"
    bank = bank.replace("import parts.till.service\n", "if False:\n    import parts.till.service\n")
    till = till.replace("import parts.bank.service\n", "if False:\n    import parts.bank.service\n")
    rules = [(each.rule, each.parties[0]) for each in found(bank=bank, till=till)]
    assert rules == [("EM050", "bank"), ("EM051", "till"), ("EM055", "bank"), ("EM055", "till")]


def test_an_event_that_is_published_no_more_is_found(found: Project) -> None:
    bank = BANK.replace("-> Payed", "-> None")
    [problem] = found(bank=bank)
    assert (problem.rule, problem.subject, problem.parties) == (
        "EM051",
        "bank.payed",
        ("till", "bank"),
    )


def test_a_command_whose_handler_is_gone_is_found(found: Project) -> None:
    bank = BANK.replace("@service.subscriber(Pay)\n", "service.publisher(Payed)\n")
    [problem] = found(bank=bank)
    assert (problem.rule, problem.subject, problem.parties) == (
        "EM052",
        "bank.pay",
        ("till", "bank"),
    )
    assert problem.place == Place("parts/till/service.py", line_of(TILL, "class Pay("))


def test_a_sender_that_writes_what_the_handler_refuses_is_found(found: Project) -> None:
    till = TILL.replace("    cents: int\n", "    cents: str\n")
    [problem] = found(till=till)
    assert (problem.rule, problem.subject) == ("EM050", "bank.pay v1")
    assert problem.parties == ("bank", "till")


def test_an_import_of_another_service_is_found(found: Project) -> None:
    till = TILL + "\ndef late():\n    from parts.bank.service import Pay\n"
    [problem] = found(till=till)
    assert (problem.rule, problem.parties) == ("EM055", ("till", "bank"))
    assert problem.place == Place("parts/till/service.py", len(till.splitlines()))


def test_a_database_in_common_is_found_until_both_declare_it(found: Project) -> None:
    urls = {"till": "postgresql://till:secret@db/all", "bank": "postgresql://bank:hidden@db/all"}
    [problem] = found(urls=urls)
    assert (problem.rule, problem.parties) == ("EM056", ("bank", "till"))
    assert problem.place == Place("parts/bank/service.py", line_of(BANK, "service = "))
    assert "secret" not in repr(problem)
    assert "hidden" not in repr(problem)
    till = TILL.replace('"till", ', '"till", shares_database_with=["bank"], ')
    bank = BANK.replace('("bank")', '("bank", shares_database_with=["till"])')
    assert [each.rule for each in found(urls=urls, till=till)] == ["EM056"]
    assert found(urls=urls, till=till, bank=bank) == []


def test_a_declaration_for_a_service_that_is_not_there_is_told(found: Project) -> None:
    till = TILL.replace('"till", ', '"till", shares_database_with=["bnak"], ')
    [problem] = found(till=till)
    assert (problem.rule, problem.severity) == ("EM059", "warning")
    assert "Did you mean bank?" in problem.fix


def test_a_message_of_another_kind_is_told_once(found: Project) -> None:
    till = TILL.replace(
        'class Payed(Event, name="bank.payed"', 'class Payed(Event, name="bank.pay"'
    )
    till = till.replace("service.publisher(Pay)\n", "")
    [problem] = found(till=till)
    assert (problem.rule, problem.parties) == ("EM058", ("till", "bank"))


def test_a_subscriber_with_another_key_is_told(found: Project) -> None:
    till = TILL.replace(
        '"bank.payed", version=1, key="account"', '"bank.payed", version=1, key="cents"'
    )
    till = till.replace(
        "    account: str\n\nservice", "    account: str\n    cents: int\n\nservice"
    )
    [problem] = found(till=till)
    assert (problem.rule, problem.subject) == ("EM058", "bank.payed")


def test_two_services_of_one_name_are_told(tmp_path: Path) -> None:
    services = [Service("till"), Service("till")]
    [problem] = review(services, root=tmp_path, settings=Settings(), today=TODAY)
    assert (problem.rule, problem.subject) == ("EM054", "service till")
