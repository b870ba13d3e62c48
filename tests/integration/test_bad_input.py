"""A user's mistakes. For each the command prints one paragraph that names what is wrong and what to
do, and ends with the right exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest

from eventmesh.testing.servers import Server
from tests.integration.conftest import BECAUSE

if TYPE_CHECKING:
    from tests.integration.conftest import Project

PASSWORD = "sesame"  # noqa: S105 - it must not be in any output

HEAD = """\
from eventmesh import Command, Event, Service, Transaction

class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str
    cents: int

class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    owner: str

service = Service("bank")
"""


def with_password(url: str, password: str = PASSWORD, path: str | None = None) -> str:
    """The URL of the same server with another password and, where given, another path."""
    parts = urlsplit(url)
    user = parts.username or ""
    netloc = f"{user}:{password}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc, path=parts.path if path is None else path))


DECLARATIONS = {
    "a handler without annotations": (
        "@service.subscriber(Deposit)\nasync def deposit(command): ...",
        ["services.bank.service.deposit", "no annotation", "'command'", "Annotate it"],
    ),
    "a handler of something else": (
        "@service.subscriber(Deposit)\nasync def deposit(command: int): ...",
        ["services.bank.service.deposit", "'command' of type int", "Use a message"],
    ),
    "an annotation that is nowhere": (
        '@service.subscriber()\nasync def deposit(command: "Deposti"): ...',
        ["services.bank.service.deposit", "'Deposti' is not defined", "Import that name"],
    ),
    "a handler that is no coroutine": (
        "@service.subscriber(Deposit)\ndef deposit(command: Deposit): ...",
        ["services.bank.service.deposit", "write `async def deposit"],
    ),
    "two handlers of one name": (
        "@service.subscriber(Deposited)\nasync def tell(event: Deposited): ...\n"
        '@service.subscriber(Deposited, name="tell")\nasync def two(event: Deposited): ...',
        ["'bank'", "two handlers of the name 'bank.tell'", "Rename one"],
    ),
    "two handlers of one command": (
        "@service.subscriber(Deposit)\nasync def one(command: Deposit): ...\n"
        "@service.subscriber(Deposit)\nasync def two(command: Deposit): ...",
        ["bank.deposit", "bank.one and bank.two", "Remove one"],
    ),
    "a publisher of another's event": (
        'class Paid(Event, name="payments.paid", version=1): ...\npaid = service.publisher(Paid)',
        ["'bank' cannot publish payments.paid", "belongs to service 'payments'", "Publish an"],
    ),
    "a handler of another's command": (
        'class Pay(Command, name="payments.pay", version=1): ...\n'
        "@service.subscriber(Pay)\nasync def pay(command: Pay): ...",
        ["'bank' cannot handle payments.pay", "belongs to service 'payments'"],
    ),
    "a message without an owner": (
        'class Paid(Event, name="Paid", version=1): ...',
        ["services.bank.service.Paid", "'Paid'", "write name="],
    ),
    "a key that is no field": (
        'class Paid(Event, name="bank.paid", version=1, key="nobody"):\n    owner: str',
        ["services.bank.service.Paid", "key='nobody'", "one of its fields: owner"],
    ),
    "a module that raises": (
        "print(1 / 0)",
        ["'bank' cannot be imported", "division by zero", "services/bank/service.py, line 11"],
    ),
    "a module that imports what is not there": (
        "import nowhere",
        ["'bank' cannot be imported", "No module named 'nowhere'", "service.py, line 11"],
    ),
    "a syntax error": ("def (", ["'bank' cannot be imported", "SyntaxError", "line 11"]),
    "no service in the module": ("del service", ["'bank'", "has no Service of the name 'service'"]),
    "another name than the folder's": (
        'service = Service("till")',
        ["is named 'till'", "looked up as 'bank'"],
    ),
}


def test_a_mistake_in_a_service_is_a_usage_error_that_names_it(
    projects: Callable[[], Project],
) -> None:
    workers = {}
    for mistake, (text, words) in DECLARATIONS.items():
        project = projects()
        project.service(HEAD + text + "\n")
        workers[mistake] = project, project.start("worker", "bank"), words
    for mistake, (project, worker, words) in workers.items():
        ended = worker.ended()
        print(f"{mistake}: {ended.err}")  # noqa: T201 - seen when an assertion fails
        ended.fails(2, *words)
        assert not (project.root / ".eventmesh").exists()  # nothing was created


def test_an_unknown_service_is_a_usage_error_with_the_known_ones(bank: Project) -> None:
    for ended in bank.run_all(
        ["worker", "bnak"], ["worker", "bank", "bnak"], ["dlq", "list", "bnak"]
    ):
        ended.fails(2, "no service 'bnak'", str(bank.root), "Known are: bank")


def test_a_project_without_services_is_a_usage_error_that_says_where_they_belong(
    project: Project,
) -> None:
    project.run("worker", "bank").fails(2, str(project.root), "services/<name>/service.py")


def test_an_invalid_pyproject_is_a_usage_error(bank: Project) -> None:
    bank.write("pyproject.toml", "[tool.eventmesh")
    bank.run("worker", "bank").fails(2, "pyproject.toml cannot be read", "table")
    bank.write("pyproject.toml", "[tool.eventmesh.services]\nbank = 3\n")
    bank.run("worker", "bank").fails(2, "[tool.eventmesh.services]", 'name = "module:attr"')


SETTINGS = {
    "LOG_LEVEL=loud": ["EVENTMESH_LOG_LEVEL", "'debug', 'info', 'warning' or 'error'"],
    "DRAIN_TIMEOUT=-1": ["EVENTMESH_DRAIN_TIMEOUT", "not greater than 0"],
    "DRAIN_TIMEOUT=soon": ["'soon' is not a valid duration", '"30s"'],
    "PREFETCH=0": ["EVENTMESH_PREFETCH", "the least is 1"],
    "BROKER_PREFIX=BANK": ["EVENTMESH_BROKER_PREFIX"],
}


def test_an_invalid_setting_is_a_usage_error(bank: Project) -> None:
    workers = [
        bank.start("worker", "bank", **dict([f"EVENTMESH_{setting}".split("=")]))
        for setting in SETTINGS
    ]
    for worker, words in zip(workers, SETTINGS.values(), strict=True):
        worker.ended().fails(2, *words)


def test_an_unsupported_broker_scheme_is_a_usage_error(bank: Project) -> None:
    bank.environment["EVENTMESH_BROKER_URL"] = f"kafka://ada:{PASSWORD}@broker/"
    for ended in bank.run_all(["worker", "bank"], ["dlq", "list", "bank"]):
        ended.fails(2, "'kafka'", "EVENTMESH_BROKER_URL", "redis://", "amqp://", "sqlite://")
        assert PASSWORD not in ended.said


BROKER_URLS = {
    f"redis://:{PASSWORD}@127.0.0.1:high": ["127.0.0.1:high", "scheme://user:password@"],
    f"amqp://ada:{PASSWORD}@127.0.0.1:high/": ["127.0.0.1:high", "amqp://user:password@"],
    "sqlite://": ["does not name a file", "sqlite:///.eventmesh/broker.db"],
    "broker": ["'broker'", "has no scheme", "EVENTMESH_BROKER_URL"],
    "localhost:5672": ["'localhost:5672'", "has no scheme", "amqp://"],
    "": ["''", "EVENTMESH_BROKER_URL"],
}


def test_an_invalid_broker_url_is_a_usage_error(bank: Project) -> None:
    workers = [bank.start("worker", "bank", EVENTMESH_BROKER_URL=url) for url in BROKER_URLS]
    for worker, words in zip(workers, BROKER_URLS.values(), strict=True):
        error = worker.ended().fails(2, "broker URL", *words)
        assert PASSWORD not in error


def test_an_unreachable_redis_is_reported_without_the_password(bank: Project) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:1/0"
    bank.environment["EVENTMESH_BROKER_URL"] = url
    for ended in bank.run_all(["worker", "bank"], ["dlq", "list", "bank"]):
        ended.fails(3, "redis://:***@127.0.0.1:1/0", "Start it", "EVENTMESH_BROKER_URL")
        assert PASSWORD not in ended.said


def test_a_server_that_is_not_redis_is_reported_as_such(bank: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        worker = bank.start("worker", "bank", "--no-supervise", EVENTMESH_BROKER_URL=url)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            worker.ended().fails(3, f"The server at {url} is not Redis", "EVENTMESH_BROKER_URL")


def test_an_unreachable_rabbitmq_is_reported_without_the_password(bank: Project) -> None:
    url = f"amqp://ada:{PASSWORD}@127.0.0.1:1/"
    bank.environment["EVENTMESH_BROKER_URL"] = url
    for ended in bank.run_all(["worker", "bank"], ["dlq", "list", "bank"]):
        error = ended.err.splitlines()[-1]  # a log line of the client library may come before it
        assert ended.code == 3
        assert error.startswith("Error: The broker at amqp://ada:***@127.0.0.1:1/ cannot be used")
        assert "EVENTMESH_BROKER_URL" in error
        assert "Traceback" not in ended.said
        assert PASSWORD not in ended.said


def test_a_wrong_redis_password_is_reported_without_showing_it(
    bank: Project, redis_server: Server
) -> None:
    url = with_password(redis_server.url)
    ended = bank.run("worker", "bank", EVENTMESH_BROKER_URL=url)
    ended.fails(3, "redis://:***@", "password", "EVENTMESH_BROKER_URL")
    assert PASSWORD not in ended.said


def test_a_wrong_rabbitmq_password_is_reported_without_showing_it(
    bank: Project, rabbitmq_server: Server
) -> None:
    url = with_password(rabbitmq_server.url)
    ended = bank.run("worker", "bank", EVENTMESH_BROKER_URL=url)
    ended.fails(3, ":***@", "Login was refused", "user, password", "EVENTMESH_BROKER_URL")
    assert PASSWORD not in ended.said


def test_a_broker_file_that_is_not_a_database_is_reported_and_left_unchanged(bank: Project) -> None:
    path = bank.write("broker.txt", "a letter and no database" * 100)
    bank.environment["EVENTMESH_BROKER_URL"] = "sqlite:///broker.txt"
    for ended in bank.run_all(["worker", "bank"], ["dlq", "list", "bank"]):
        ended.fails(3, "broker.txt", "file is not a database", "Check that")
    assert path.read_text() == "a letter and no database" * 100


def test_a_broker_file_whose_folder_cannot_be_created_is_reported(bank: Project) -> None:
    bank.write("file", "")
    ended = bank.run("worker", "bank", EVENTMESH_BROKER_URL="sqlite:///file/broker.db")
    ended.fails(3, "file/broker.db cannot be used", "Check that its folder can be written")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"mysql://ada:{PASSWORD}@host/bank", ["a mysql database", "postgresql:// or sqlite:///"]),
        ("bank", ["not a database URL", "postgresql://user:password@host:port/database"]),
    ],
)
def test_an_invalid_database_url_is_a_usage_error(
    bank: Project, url: str, words: list[str]
) -> None:
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = url
    for ended in bank.run_all(["worker", "bank"], ["db", "upgrade", "bank"]):
        ended.fails(2, "EVENTMESH_BANK_DATABASE_URL", *words)
        assert PASSWORD not in ended.said


def test_an_unreachable_postgresql_is_reported_without_the_password(bank: Project) -> None:
    url = f"postgresql://ada:{PASSWORD}@127.0.0.1:1/bank"
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = url
    for ended in bank.run_all(
        ["worker", "bank"], ["db", "upgrade", "bank"], ["db", "upgrade", "bank", "--create"]
    ):
        ended.fails(3, "'bank'", "ada:***@127.0.0.1:1/bank", "EVENTMESH_BANK_DATABASE_URL")
        assert PASSWORD not in ended.said


def test_a_wrong_postgresql_password_is_reported_without_showing_it(
    bank: Project, postgres_server: Server
) -> None:
    url = with_password(postgres_server.url)
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = url
    for ended in bank.run_all(["worker", "bank"], ["db", "upgrade", "bank"]):
        ended.fails(3, "'bank'", ":***@", "refuses the login", "EVENTMESH_BANK_DATABASE_URL")
        assert PASSWORD not in ended.said


def test_a_missing_postgresql_database_is_reported(bank: Project, postgres_server: Server) -> None:
    url = urlunsplit(urlsplit(postgres_server.url)._replace(path="/nobody_made_this"))
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = url
    for ended in bank.run_all(["worker", "bank"], ["db", "upgrade", "bank"]):
        missing = 'cannot be used: database "nobody_made_this" does not exist'
        ended.fails(3, "'bank'", missing, "EVENTMESH_BANK_DATABASE_URL")


def test_missing_tables_in_postgresql_are_drift_and_the_error_names_the_command(
    bank: Project, postgres_url: str
) -> None:
    ended = bank.run("worker", "bank", EVENTMESH_BANK_DATABASE_URL=postgres_url)
    ended.fails(4, "'bank' has no EventMesh tables", "Run `eventmesh db upgrade bank`")


@pytest.fixture
def frozen(bank: Project) -> Project:
    """The bank with its schemas frozen."""
    bank.run("schema", "freeze").succeeds("frozen bank.deposit v1", "frozen bank.deposited v1")
    return bank


def test_a_change_of_a_frozen_schema_is_drift_until_its_version_is_raised(frozen: Project) -> None:
    lock = frozen.root / "schemas/bank/deposit/v1.json"
    before = lock.read_bytes()
    frozen.change_service("    cents: int\n    note", "    cents: int\n    currency: str\n    note")
    worker, freeze, check = frozen.run_all(
        ["worker", "bank"], ["schema", "freeze"], ["schema", "check"]
    )
    for ended in (worker, freeze):
        ended.fails(
            4, "bank.deposit v1", "'currency' was added", "currency: Field required", "raise"
        )
    check.fails(4, "EM031: bank.deposit v1", "raise its version by one to 2")
    assert "'currency' was added" in check.out
    assert lock.read_bytes() == before

    frozen.change_service('name="bank.deposit", version=1', 'name="bank.deposit", version=2')
    frozen.run("schema", "check").fails(4, "EM030: bank.deposit v2", "EM036: bank.deposit v2")
    frozen.run("schema", "freeze").succeeds("frozen bank.deposit v2")
    frozen.run("schema", "check").fails(4, "EM036: bank.deposit v2", "upcaster")
    assert lock.read_bytes() == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "was edited": lambda text: text.replace(b'"integer"', b'"number"'),
    "is not valid JSON": lambda text: text[: len(text) // 2],
    "is not valid UTF-8": lambda _: b"\xff\xfe",
    "is not a lock file": lambda _: b"[]",
}


def test_a_damaged_lock_file_is_drift_that_names_the_file(frozen: Project) -> None:
    lock = frozen.root / "schemas/bank/deposit/v1.json"
    whole = lock.read_bytes()
    for words, damage in DAMAGES.items():
        lock.write_bytes(damage(whole))
        worker, check = frozen.run_all(["worker", "bank"], ["schema", "check"])
        worker.fails(4, "bank.deposit v1", "schemas/bank/deposit/v1.json", words)
        check.fails(4, "EM033: bank.deposit v1", "version control")
        assert "schemas/bank/deposit/v1.json" in check.out


def test_an_unknown_dead_letter_is_a_usage_error(bank: Project) -> None:
    nobody = "01890000-0000-7000-8000-000000000000"
    show, replay, discard, none, both = bank.run_all(
        ["dlq", "show", "bank", nobody],
        ["dlq", "replay", "bank", *BECAUSE, nobody],
        ["dlq", "discard", "bank", *BECAUSE, nobody],
        ["dlq", "replay", "bank", *BECAUSE],
        ["dlq", "discard", "bank", *BECAUSE, nobody, "--all"],
    )
    show.fails(2, nobody, "`eventmesh dlq list bank`")
    replay.fails(2, nobody, "`eventmesh dlq list bank`")
    discard.fails(2, nobody, "nothing was discarded", "`eventmesh dlq list bank`")
    none.fails(2, "--all")
    both.fails(2, "not both")
    assert not (bank.root / ".eventmesh").exists()  # asking made no broker


def test_schema_check_prints_its_report_as_json(frozen: Project) -> None:
    report = json.loads(frozen.run("schema", "check", "--json").succeeds())
    assert report == {
        "errors": 0,
        "warnings": 0,
        "waived": 0,
        "problems": [],
        "passed": ["bank.deposit v1", "bank.deposited v1"],
    }
