"""Facts are collected from real services, each fault is one problem, and the shop has none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path

import pytest
from faststream.redis import RedisBroker
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table

from eventmesh import Command, Event, Saga, Service, Transaction
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


class Paid(Event, name="bank.paid", version=1, key="account"):
    account: str


class State(BaseModel):
    account: str


settle = Saga("till.settle", State)


@settle.starts
def begin(event: Asked) -> State:
    return State(account=event.account)


@settle.step(ok=Paid, timeout="1m", no_undo="nobody asks for the money back")
def pay(state: State) -> Pay:
    return Pay(account=state.account)


settle.flow(pay)


def facts_of(*services: Service, folder: Path = ROOT, **urls: str) -> Facts:
    settings = Settings(database_urls=urls)
    return collect_facts(services, read_locks(folder / "schemas"), settings, Sources(folder), {})


# Collecting facts


def test_messages_that_handlers_read_return_and_send_are_collected() -> None:
    bank = Service("bank")

    @bank.subscriber(Pay)
    async def pay(command: Pay, tx: Transaction) -> Paid: ...

    till = Service("till")
    till.publisher(Pay)

    @till.subscriber(Paid)
    async def one(event: Paid) -> None: ...

    @till.subscriber(Paid, name="two.again")
    async def two(event: Paid) -> None: ...

    found = facts_of(bank, till)
    assert found.services == ("bank", "till")
    assert [(each.service, each.model, each.writes) for each in found.publications] == [
        ("bank", Paid, 1),
        ("till", Pay, 1),
    ]
    assert [(each.service, each.model, each.subscriptions) for each in found.readings] == [
        ("bank", Pay, ("bank.pay",)),
        ("till", Paid, ("till.one", "till.two.again")),
    ]
    lines = Path(__file__).read_text().splitlines()
    place = found.publications[1].place
    assert place is not None
    assert place.file == "tests/schemas/test_fleet_of_services.py"
    assert lines[place.line - 1].startswith("class Pay(")


def test_messages_that_a_saga_reads_and_sends_are_collected() -> None:
    till = Service("till")
    till.include(settle)
    found = facts_of(till)
    assert [each.model for each in found.publications] == [Pay]
    assert {(each.model, each.subscriptions) for each in found.readings} == {
        (Asked, ("till.settle.saga",)),
        (Paid, ("till.settle.saga",)),
    }


def test_a_handler_in_a_faststream_app_is_collected() -> None:
    service = Service("till")
    mesh = RedisMesh(service, RedisBroker())

    @mesh.subscriber(Paid)
    async def note(event: Paid) -> None: ...

    [reading] = facts_of(service).readings
    assert (reading.model, reading.subscriptions) == (Paid, ("till.note",))


def test_the_version_of_a_downcast_publication_is_collected() -> None:
    class Later(Event, name="bank.paid", version=2):
        number: str

    @Later.downcaster(to_version=1)
    def back(data: dict[str, str]) -> dict[str, str]:
        return {"account": data["number"]}

    bank = Service("bank")
    bank.publisher(Later, version=1)
    [publication] = facts_of(bank).publications
    assert publication.writes == 1


def test_databases_and_their_tables_are_collected() -> None:
    metadata = MetaData()
    Table("accounts", metadata, Column("id", Integer, primary_key=True))
    bank = Service("bank", metadata=metadata, shares_database_with=["till"])
    till, mail = Service("till", metadata=metadata), Service("mail")
    found = facts_of(bank, till, mail, bank="postgresql://me:secret@DB/money?ssl=require")
    one, two, three = found.databases
    assert one.database == "postgresql://db:5432/money"
    assert (one.given, two.given) == (True, False)
    assert (one.shares_with, two.shares_with) == (("till",), ())
    assert one.tables == {"accounts"}
    assert one.metadata == two.metadata
    assert three.database == ""
    assert "secret" not in repr(found)


def test_shares_database_with_must_be_a_list() -> None:
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
def test_urls_of_the_same_database_have_the_same_name(tmp_path: Path, one: str, two: str) -> None:
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
def test_urls_of_different_databases_have_different_names(
    tmp_path: Path, one: str, two: str
) -> None:
    assert database_name(one, "a", tmp_path) != database_name(two, "a", tmp_path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory"])
def test_a_database_in_memory_has_no_name_because_it_cannot_be_shared(
    tmp_path: Path, url: str
) -> None:
    assert database_name(url, "orders", tmp_path) == ""


def test_the_error_for_an_unsupported_url_does_not_show_its_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="EVENTMESH_ORDERS_DATABASE_URL") as caught:
        database_name("mysql://me:secret@db/shop", "orders", tmp_path)
    assert "secret" not in str(caught.value)


# Whole projects


TILL = """
from eventmesh import Command, Event, Service, Transaction
from sqlalchemy import MetaData

class Pay(Command, name="bank.pay", version=1, key="account"):
    account: str
    cents: int

class Paid(Event, name="bank.paid", version=1, key="account"):
    account: str

service = Service("till", metadata=MetaData())
service.publisher(Pay)

@service.subscriber(Paid)
async def note(event: Paid, tx: Transaction) -> None: ...
"""
BANK = """
from eventmesh import Command, Event, Service, Transaction

class Pay(Command, name="bank.pay", version=1, key="account"):
    account: str
    cents: int

class Paid(Event, name="bank.paid", version=1, key="account"):
    account: str
    cents: int

service = Service("bank")

@service.subscriber(Pay)
async def pay(command: Pay, tx: Transaction) -> Paid: ...
"""

Project = Callable[..., list[Problem]]


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Mapping[str, str]], list[Service]]]:
    """Writes and loads services, and removes their modules after the test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def unload() -> None:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "parts":
                del sys.modules[name]

    def load(files: Mapping[str, str]) -> list[Service]:
        unload()
        lines = ["[tool.eventmesh.services]"]
        for name, text in files.items():
            path = tmp_path / "parts" / name / "service.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            lines.append(f'{name} = "parts.{name}.service:service"')
        (tmp_path / "pyproject.toml").write_text("\n".join(lines))
        return load_services([], tmp_path)

    yield load
    unload()


@pytest.fixture
def found(
    tmp_path: Path, project: Callable[[Mapping[str, str]], list[Service]]
) -> Callable[..., list[Problem]]:
    """The problems of till and bank, frozen first, after a change to one of them."""

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


def test_the_shop_has_no_problems(tmp_path: Path) -> None:
    services = load_services([], ROOT)
    freeze_all(services, tmp_path)
    settings = Settings(schemas=tmp_path / "schemas")
    assert review(services, root=ROOT, settings=settings, today=TODAY) == []


def test_services_that_fit_together_have_no_problems(found: Project) -> None:
    assert found() == []


def test_a_subscriber_that_requires_an_unpublished_field_is_found(found: Project) -> None:
    till = TILL.replace("    account: str\n\nservice", "    account: str\n    fee: int\n\nservice")
    [problem] = found(till=till)
    assert (problem.rule, problem.subject) == ("EM050", "bank.paid v1")
    assert problem.parties == ("till", "bank")
    assert problem.place == Place("parts/till/service.py", line_of(till, "class Paid"))
    assert problem.witness is not None
    assert "fee" not in problem.witness.document


def test_a_new_version_that_a_subscriber_cannot_read_is_found(found: Project) -> None:
    bank = BANK.replace('"bank.paid", version=1, key="account"', '"bank.paid", version=2')
    bank = bank.replace("    account: str\n    cents: int\n\nservice", "    number: int\n\nservice")
    bank += "\n@Paid.upcaster(from_version=1)\ndef renamed(data):\n    return {'number': 1}\n"
    problems = found(bank=bank, freeze_again=True)
    [problem] = problems
    assert (problem.rule, problem.subject) == ("EM050", "bank.paid v2")
    assert problem.parties == ("till", "bank")


def test_a_downcast_version_keeps_a_subscriber_working(found: Project) -> None:
    bank = BANK.replace('"bank.paid", version=1, key="account"', '"bank.paid", version=2')
    bank = bank.replace("    account: str\n    cents: int\n\nservice", "    number: int\n\nservice")
    bank += (
        "\nservice.publisher(Paid, version=1)\n"
        "@Paid.upcaster(from_version=1)\ndef renamed(data):\n    return {'number': 1}\n"
        "@Paid.downcaster(to_version=1)\ndef back(data):\n"
        "    return {'account': str(data['number']), 'cents': 0}\n"
    )
    head, _, tail = bank.partition("@service.subscriber")
    rest, _, casts = tail.partition("@Paid.upcaster")
    bank = head + "@Paid.upcaster" + casts + "\n@service.subscriber" + rest
    assert found(bank=bank, freeze_again=True) == []


def test_a_breaking_change_within_a_version_is_reported_once_with_all_services_that_it_breaks(
    found: Project,
) -> None:
    bank = BANK.replace("    account: str\n    cents: int\n\nservice", "    cents: int\n\nservice")
    bank = bank.replace('"bank.paid", version=1, key="account"', '"bank.paid", version=1')
    [problem] = found(bank=bank)
    assert problem.subject == "bank.paid v1"
    assert problem.rule in ("EM031", "EM042")
    assert problem.parties == ("bank", "till")
    assert "till.note" in problem.summary


def test_a_version_that_its_owner_cannot_read_is_reported_once_with_all_senders(
    found: Project,
) -> None:
    bank = BANK.replace('"bank.pay", version=1', '"bank.pay", version=2')
    bank = bank.replace("    cents: int\n\nclass Paid", "    iban: str\n\nclass Paid")
    [problem] = found(bank=bank, freeze_again=True)
    assert problem.rule == "EM036"
    assert problem.parties == ("bank", "till")
    assert "bank.pay" in problem.summary


def test_a_failing_upcaster_is_reported_once(found: Project) -> None:
    bank = BANK.replace('"bank.pay", version=1', '"bank.pay", version=2')
    bank = bank.replace("    cents: int\n\nclass Paid", "    iban: str\n\nclass Paid")
    bank += "\n@Pay.upcaster(from_version=1)\ndef up(data):\n    return {'iban': data['x']}\n"
    [problem] = found(bank=bank, freeze_again=True)
    assert problem.rule == "EM037"
    assert problem.parties == ("bank", "till")


def test_models_are_compared_with_the_baseline_after_freezing_again(
    project: Callable[[Mapping[str, str]], list[Service]], tmp_path: Path
) -> None:
    services = project({"bank": BANK})
    freeze(list(services[0].registry.owned()), tmp_path / "before")
    services = project({"bank": BANK.replace("cents: int\n\nservice", "cents: str\n\nservice")})
    freeze_all(services, tmp_path)
    settings, before = Settings(), read_locks(tmp_path / "before")
    found = review(services, root=tmp_path, settings=settings, today=TODAY)
    assert [each.rule for each in found] == [
        "EM070"
    ]  # the till, which sends the command, is not checked
    found = review(services, root=tmp_path, settings=settings, today=TODAY, baseline=before)
    [problem] = [each for each in found if each.severity == "error"]
    assert (problem.rule, problem.subject) == ("EM031", "bank.paid v1")


def test_problems_have_a_fixed_order(found: Project) -> None:
    bank = BANK.replace("-> Paid", "-> None") + "import parts.till.service\n"
    till = TILL.replace("    cents: int\n", "    cents: str\n") + "import parts.bank.service\n"
    bank = bank.replace("import parts.till.service\n", "if False:\n    import parts.till.service\n")
    till = till.replace("import parts.bank.service\n", "if False:\n    import parts.bank.service\n")
    rules = [(each.rule, each.parties[0]) for each in found(bank=bank, till=till)]
    assert rules == [("EM050", "bank"), ("EM051", "till"), ("EM055", "bank"), ("EM055", "till")]


def test_an_event_that_is_no_longer_published_is_found(found: Project) -> None:
    bank = BANK.replace("-> Paid", "-> None")
    [problem] = found(bank=bank)
    assert (problem.rule, problem.subject, problem.parties) == (
        "EM051",
        "bank.paid",
        ("till", "bank"),
    )


def test_a_command_whose_handler_was_removed_is_found(found: Project) -> None:
    bank = BANK.replace("@service.subscriber(Pay)\n", "service.publisher(Paid)\n")
    [problem] = found(bank=bank)
    assert (problem.rule, problem.subject, problem.parties) == (
        "EM052",
        "bank.pay",
        ("till", "bank"),
    )
    assert problem.place == Place("parts/till/service.py", line_of(TILL, "class Pay("))


def test_a_sender_of_data_that_the_handler_rejects_is_found(found: Project) -> None:
    till = TILL.replace("    cents: int\n", "    cents: str\n")
    [problem] = found(till=till)
    assert (problem.rule, problem.subject) == ("EM050", "bank.pay v1")
    assert problem.parties == ("bank", "till")


def test_an_import_of_another_service_is_found(found: Project) -> None:
    till = TILL + "\ndef late():\n    from parts.bank.service import Pay\n"
    [problem] = found(till=till)
    assert (problem.rule, problem.parties) == ("EM055", ("till", "bank"))
    assert problem.place == Place("parts/till/service.py", len(till.splitlines()))


def test_a_shared_database_is_a_problem_until_both_services_declare_it(found: Project) -> None:
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


def test_a_shared_database_with_an_unknown_service_is_a_warning(found: Project) -> None:
    till = TILL.replace('"till", ', '"till", shares_database_with=["bnak"], ')
    [problem] = found(till=till)
    assert (problem.rule, problem.severity) == ("EM059", "warning")
    assert "Did you mean bank?" in problem.fix


def test_a_message_declared_with_another_kind_is_reported_once(found: Project) -> None:
    till = TILL.replace('class Paid(Event, name="bank.paid"', 'class Paid(Event, name="bank.pay"')
    till = till.replace("service.publisher(Pay)\n", "")
    [problem] = found(till=till)
    assert (problem.rule, problem.parties) == ("EM058", ("till", "bank"))


def test_a_subscriber_with_another_key_is_found(found: Project) -> None:
    till = TILL.replace(
        '"bank.paid", version=1, key="account"', '"bank.paid", version=1, key="cents"'
    )
    till = till.replace(
        "    account: str\n\nservice", "    account: str\n    cents: int\n\nservice"
    )
    [problem] = found(till=till)
    assert (problem.rule, problem.subject) == ("EM058", "bank.paid")


def test_two_services_with_the_same_name_are_found(tmp_path: Path) -> None:
    services = [Service("till"), Service("till")]
    [problem] = review(services, root=tmp_path, settings=Settings(), today=TODAY)
    assert (problem.rule, problem.subject) == ("EM054", "service till")
