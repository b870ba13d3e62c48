"""`eventmesh schema` as a user runs it: a breaking pull request from the change to the fix, every
report format, comparisons with a git revision, and invalid input."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as Xml

import pytest

from eventmesh.compat import accepts

if TYPE_CHECKING:
    from tests.integration.conftest import Ended, Project

PAYMENTS = """\
from decimal import Decimal
from uuid import UUID

from eventmesh import Event, Service


class PaymentCaptured(Event, name="payments.payment_captured", version=1, key="order_id"):
    order_id: UUID
    amount: Decimal
    note: str = ""  # for the customer


service = Service("payments")
captured = service.publisher(PaymentCaptured)
"""

ORDERS = """\
from uuid import UUID

from eventmesh import Event, Service


class PaymentCaptured(Event, name="payments.payment_captured", version=1, key="order_id"):
    order_id: UUID


service = Service("orders")


@service.subscriber(PaymentCaptured)
async def remember(event: PaymentCaptured) -> None: ...
"""

CONTRACTS = "services/payments/service.py"
LOCK = "schemas/payments/payment_captured/v1.json"
CAPTURED = "payments.payment_captured"


@pytest.fixture
def shop(project: Project) -> Project:
    """A project with two services, frozen and committed."""
    project.service(PAYMENTS, "payments")
    project.service(ORDERS, "orders")
    project.environment |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{f"GIT_{who}_NAME": "test" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "test@example.org" for who in ("AUTHOR", "COMMITTER")},
    }
    project.write(".gitignore", "__pycache__/\n.output-*\n")
    project.run("schema", "freeze").succeeds(LOCK)
    git(project, "init", "-q", "-b", "main")
    commit(project)
    return project


def git(project: Project, *arguments: str) -> str:
    return project.start_program("git", *arguments).ended().succeeds()


def commit(project: Project) -> None:
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "x")


def change(project: Project, before: str, after: str, path: str = CONTRACTS) -> None:
    file = project.root / path
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def require_currency(project: Project) -> None:
    change(project, "    amount: Decimal\n", "    amount: Decimal\n    currency: str\n")


def check(project: Project, *arguments: str) -> Ended:
    return project.run("schema", "check", *arguments)


def found(project: Project, *arguments: str) -> list[dict[str, Any]]:
    """The problems, from the JSON."""
    ended = check(project, "--format", "json", *arguments)
    assert ended.code in (0, 4), ended.said
    told = json.loads(ended.out)
    assert ended.code == (4 if told["errors"] else 0)
    problems: list[dict[str, Any]] = told["problems"]
    return problems


def pytest_in(project: Project, *arguments: str) -> Ended:
    return project.pytest("-q", *arguments)


# A broken pull request, from change to fix


def test_a_breaking_pull_request_can_be_followed_from_the_change_to_the_fix(shop: Project) -> None:
    check(shop, "--against", "main").succeeds("payments.payment_captured v1: as frozen")
    git(shop, "checkout", "-q", "-b", "currency")
    require_currency(shop)

    broken = check(shop, "--against", "main")
    broken.fails(4, "EM031", "payments.payment_captured v1")
    assert "This document fails" in broken.out
    assert f"{CONTRACTS}:7" in broken.out
    assert "currency" in broken.out
    [problem] = found(shop)
    frozen = json.loads((shop.root / LOCK).read_text())
    assert accepts(frozen["writer"])(problem["witness"]["document"])

    lock = (shop.root / LOCK).read_bytes()
    fixed = check(shop, "--fix")
    assert fixed.code == 4  # a person has to decide
    test = "tests/schemas/test_payments_payment_captured_v1.py"
    assert test in fixed.out
    contracts = (shop.root / CONTRACTS).read_text()
    assert 'name="payments.payment_captured", version=2, key="order_id"' in contracts
    assert "@PaymentCaptured.upcaster(from_version=1)" in contracts
    assert 'note: str = ""  # for the customer\n' in contracts
    assert (shop.root / LOCK).read_bytes() == lock
    assert not (shop.root / LOCK).with_name("v2.json").exists()

    red = pytest_in(shop, test)
    assert red.code == 1
    assert "decide about currency" in red.out
    assert check(shop, "--fix").code == 4  # nothing is left to write
    assert (shop.root / CONTRACTS).read_text() == contracts
    assert not (shop.root / LOCK).with_name("v2.json").exists()

    start, end = contracts.index("    # TODO"), contracts.index("    return data |")
    filled = contracts[:start] + contracts[end:].replace('"currency": ...', '"currency": "USD"')
    (shop.root / CONTRACTS).write_text(filled)
    pytest_in(shop, test).succeeds("1 passed")
    assert [problem["rule"] for problem in found(shop)] == ["EM030"]
    shop.run("schema", "freeze").succeeds("payments.payment_captured v2")
    check(shop, "--against", "main").succeeds("payments.payment_captured v2: as frozen")


def test_a_fix_without_open_decisions_only_needs_to_be_frozen(shop: Project) -> None:
    change(shop, '    note: str = ""  # for the customer\n', "")
    change(shop, "class PaymentCaptured(Event, ", "class PaymentCaptured(Event, extra='forbid', ")
    check(shop, "--fix").fails(4, "EM031")
    pytest_in(shop, "tests/schemas").succeeds("1 passed")
    check(shop, "--fix").succeeds("froze schemas/payments/payment_captured/v2.json")
    check(shop, "--against", "main").succeeds("payments.payment_captured v2: as frozen")


def test_an_existing_test_is_never_overwritten(shop: Project) -> None:
    mine = shop.write("tests/schemas/test_payments_payment_captured_v1.py", "# mine\n")
    require_currency(shop)
    check(shop, "--fix").fails(4)
    assert mine.read_text() == "# mine\n"
    assert "version=2" in (shop.root / CONTRACTS).read_text()


def test_the_fix_does_not_change_a_version_that_is_not_a_literal(shop: Project) -> None:
    require_currency(shop)
    change(shop, "version=1", "version=VERSION")
    change(shop, "\n\nclass", "\nVERSION = 1\n\nclass")
    before = (shop.root / CONTRACTS).read_bytes()
    ended = check(shop, "--fix")
    ended.fails(4, "EM031")
    assert "left to you" in ended.out
    assert "by hand" in ended.out
    assert (shop.root / CONTRACTS).read_bytes() == before
    assert not (shop.root / "tests").exists()


def test_the_fix_writes_a_missing_upcaster(shop: Project) -> None:
    require_currency(shop)
    change(shop, "version=1", "version=2")
    assert "EM036" in {problem["rule"] for problem in found(shop)}
    check(shop, "--fix").fails(4)
    contracts = (shop.root / CONTRACTS).read_text()
    assert "@PaymentCaptured.upcaster(from_version=1)" in contracts
    assert "version=2" in contracts
    assert (shop.root / "tests/schemas/test_payments_payment_captured_v1.py").exists()
    assert not (shop.root / LOCK).with_name("v2.json").exists()


def test_the_fix_freezes_compatible_changes(shop: Project) -> None:
    change(shop, "    amount: Decimal\n", '    amount: Decimal\n    shop: str = "web"\n')
    assert [problem["rule"] for problem in found(shop)] == ["EM032"]
    check(shop, "--fix").succeeds("v1.2.json")
    assert found(shop) == []


# Compared with a revision


def test_a_lock_file_that_was_deleted_and_frozen_again_is_found_and_restored(shop: Project) -> None:
    require_currency(shop)
    (shop.root / LOCK).unlink()
    shop.run("schema", "freeze").succeeds(LOCK)
    check(shop).succeeds()
    assert {p["rule"] for p in found(shop, "--against", "main")} == {"EM031", "EM034"}
    ended = check(shop, "--against", "main", "--fix")
    ended.fails(4, "EM031")
    assert f"restored {LOCK}" in ended.out
    assert git(shop, "status", "--porcelain", "schemas") == ""
    assert "version=2" in (shop.root / CONTRACTS).read_text()


def test_the_check_works_in_a_subfolder_of_the_repository(shop: Project, tmp_path: Path) -> None:
    (shop.root / LOCK).unlink()
    inner = tmp_path / "inner"
    inner.mkdir()
    git(shop, "mv", "services", "inner/services")
    shutil.move(shop.root / "schemas", inner / "schemas")
    git(shop, "add", "-A")
    done = shop.start_program(
        sys.executable, "-c",
        "import os; os.chdir('inner'); from eventmesh.cli.main import app;"
        "app(['schema', 'check', '--against', 'HEAD', '--format', 'github'])",
    ).ended()  # fmt: skip
    assert "file=inner/services/payments/service.py,line=7" in done.out


def test_an_unknown_revision_is_a_usage_error(shop: Project) -> None:
    check(shop, "--against", "nonsense").fails(2, "no revision 'nonsense'")
    shutil.rmtree(shop.root / ".git")
    check(shop, "--against", "main").fails(2, "not a git repository")


# Formats and waivers


def test_every_report_format_can_be_printed_and_written_to_a_file(shop: Project) -> None:
    require_currency(shop)
    forms: dict[str, Callable[[str], Any]] = {
        "text": str,
        "json": json.loads,
        "github": lambda text: text.startswith("::error ") or pytest.fail(text),
        "junit": Xml.fromstring,
        "sarif": json.loads,
    }
    ends = shop.run_all(
        *(["schema", "check", "--format", form] for form in forms),
        *(["schema", "check", "--format", form, "--output", f"out.{form}"] for form in forms),
        ["schema", "check", "--json"],
    )
    for form, ended, into_file in zip(forms, ends[:5], ends[5:10], strict=True):
        ended.fails(4, "EM031")
        forms[form](ended.out)
        into_file.fails(4, "EM031")
        assert into_file.out == ""
        assert (shop.root / f"out.{form}").read_text() == ended.out
    assert ends[10].out == ends[1].out
    check(shop, "--output", "no/such/folder").fails(2, "no/such/folder")


def test_a_waiver_applies_until_it_expires(shop: Project) -> None:
    require_currency(shop)
    [problem] = found(shop)
    today = date.today()

    def waive(expires: date) -> None:
        shop.write(
            "pyproject.toml",
            f'[[tool.eventmesh.waivers]]\nfingerprint = "{problem["fingerprint"]}"\n'
            f'reason = "nobody reads it yet"\nexpires = {expires}\n',
        )

    waive(today + timedelta(days=2))
    check(shop).succeeds("waived   EM031", "nobody reads it yet", "1 waived")
    waive(today - timedelta(days=2))
    ended = check(shop)
    ended.fails(4, "EM031")
    assert "expired" in ended.out
    shop.write("pyproject.toml", "[[tool.eventmesh.waivers]]\nfingerprint = 5\n")
    check(shop).fails(2, "fingerprint = 5")


def test_only_the_named_services_are_checked(shop: Project) -> None:
    require_currency(shop)
    assert found(shop, "orders") == []
    assert [problem["rule"] for problem in found(shop, "payments")] == ["EM031"]
    check(shop, "nonsense").fails(2, "no service 'nonsense'")


# Showing


def test_a_frozen_version_is_shown_as_text_and_as_json(shop: Project) -> None:
    shown = shop.run("schema", "show", CAPTURED).succeeds(
        "payments.payment_captured v1 (event, key order_id)", "active", LOCK, "orders.remember"
    )
    assert max(map(len, shown.splitlines())) <= 100
    told = json.loads(shop.run("schema", "show", f"{CAPTURED}@1", "--json").succeeds())
    assert {field["name"]: field["required"] for field in told["fields"]} == {
        "order_id": True,
        "amount": True,
        "note": False,
    }
    assert told["publishers"] == ["payments"]
    assert told["subscribers"] == {"orders.remember": 1}


def test_a_version_can_be_deprecated_until_a_day(shop: Project) -> None:
    shop.run("schema", "deprecate", CAPTURED, "1", "--sunset", "2099-12-31").succeeds(LOCK)
    shop.run("schema", "show", CAPTURED).succeeds("deprecated, sunset 2099-12-31")
    check(shop, "--against", "main").succeeds()
    wrong = {
        ("payments.nothing", "1", "--sunset", "2099-12-31"): "payments.nothing",
        (CAPTURED, "2", "--sunset", "2099-12-31"): "no frozen version 2",
        (CAPTURED, "1", "--sunset", "soon"): "'soon' is not a date",
    }
    ends = shop.run_all(*(["schema", "deprecate", *line] for line in wrong))
    for ended, words in zip(ends, wrong.values(), strict=True):
        ended.fails(2, words)


def test_versions_files_and_code_can_be_compared_in_both_directions(shop: Project) -> None:
    require_currency(shop)
    text = shop.run("schema", "diff", f"{CAPTURED}@1", CAPTURED).succeeds("no.", "currency")
    assert text.count(" reads payments.payment_captured") == 2
    forward, backward = json.loads(
        shop.run("schema", "diff", f"{CAPTURED}@1", CAPTURED, "--json").succeeds()
    )
    assert forward["verdict"] == "breaking"
    assert accepts(json.loads((shop.root / LOCK).read_text())["writer"])(forward["witness"])
    assert backward["verdict"] == "compatible"

    shop.write("a.json", '{"type": "integer"}')
    shop.write("b.json", '{"type": ["integer", "null"]}')
    there, back = json.loads(shop.run("schema", "diff", "a.json", "b.json", "--json").succeeds())
    assert (there["verdict"], back["verdict"]) == ("compatible", "breaking")
    assert back["witness"] is None
    shop.run("schema", "diff", LOCK, f"{CAPTURED}@1.1").succeeds("yes, proved")


def test_the_rules_are_printed(project: Project) -> None:
    project.run("schema", "rules").succeeds("| EM031 |", "## All services together")


# Foreign schemas


def test_a_foreign_schema_is_imported_and_compared(shop: Project) -> None:
    shop.write(
        "customer.json",
        '{"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}',
    )
    command = ["schema", "import", "customer.json", "--name", "crm.customer_created"]
    python = shop.run(*command).succeeds("class CustomerCreated(Event", "yes, proved")
    compile(python, "contracts.py", "exec")
    shop.run(*command, "--version", "3", "--output", "contracts.py").succeeds("proved")
    shop.python("import contracts; print(contracts.CustomerCreated.__identity__)").succeeds(
        "crm.customer_created v3"
    )
    shop.run(*command, "--output", "contracts.py").fails(2, "exists already")
    told = json.loads(shop.run(*command, "--json").succeeds())
    assert told["proof"]["verdict"] == "compatible"


def test_an_imported_model_that_does_not_read_everything_fails_the_command(shop: Project) -> None:
    shop.write("odd.json", '{"properties": {"m": {"patternProperties": {"^x": {"type": "null"}}}}}')
    command = ["schema", "import", "odd.json", "--name", "crm.odd"]
    ended = shop.run(*command, "--output", "odd.py")
    ended.fails(4, "Odd does not read everything that odd.json allows", "by hand")
    assert "Odd reads odd.json: no." in ended.out
    assert "class Odd(Event" in (shop.root / "odd.py").read_text()
    ended = shop.run(*command, "--json")
    ended.fails(4)
    assert json.loads(ended.out)["proof"]["verdict"] == "breaking"


# Invalid input


def nested(levels: int) -> str:
    return '{"properties":{"a":' * levels + "{}" + "}}" * levels


BAD = {
    "no_json.json": b"{nonsense",
    "empty.json": b"",
    "binary.json": bytes(range(256)),
    "doubled.json": b'{"type": "object", "type": "integer"}',
    "nan.json": b'{"type": "number", "minimum": NaN}',
    "list.json": b"[]",
    "deep.json": nested(5_000).encode(),
    "remote.json": b'{"type": "object", "properties": {"a": {"$ref": "http://example.org/a"}}}',
    "outside.json": b'{"type": "object", "properties": {"a": {"$ref": "../../../etc/passwd"}}}',
    "missing_ref.json": b'{"type": "object", "properties": {"a": {"$ref": "gone.json"}}}',
}
ODD = {
    "levels.json": nested(200).encode(),
    "properties.json": json.dumps(
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2_000)}}
    ).encode(),
    "pattern.json": b'{"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}',
    "cycle.json": b'{"$ref": "#"}',
    "unknown.json": b'{"type": "object", "nonsense": 5, "properties": {"a": {"type": "odd"}}}',
    "keywords.json": b'{"type": 5, "properties": [], "required": "a", "items": 3}',
}


def test_unreadable_files_are_usage_errors(project: Project) -> None:
    project.write("fine.json", '{"type": "object", "properties": {"a": {"type": "string"}}}')
    for name, content in BAD.items():
        project.write(name, content)
    (project.root / "folder.json").mkdir()
    os.mkfifo(project.root / "pipe.json")
    with project.write("large.json", "").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    names = [*BAD, "folder.json", "pipe.json", "large.json", "missing.json"]
    for ended in project.run_all(
        *(["schema", "diff", name, "fine.json"] for name in names[::2]),
        *(["schema", "diff", "fine.json", name, "--json"] for name in names[1::2]),
        *(["schema", "import", name, "--name", "a.b"] for name in names[-4:]),
    ):
        ended.fails(2)


def test_unusual_schemas_never_cause_a_traceback(project: Project) -> None:
    project.write("fine.json", '{"type": "object", "properties": {"a": {"type": "string"}}}')
    for name, content in ODD.items():
        project.write(name, content)
    for ended in project.run_all(
        *(["schema", "diff", name, "fine.json", "--json"] for name in ODD),
        *(["schema", "import", name, "--name", "a.b"] for name in ODD),
    ):
        assert ended.code in (0, 2, 4), ended.said
        assert "Traceback" not in ended.said
        if ended.code:
            ended.fails(ended.code)


def test_edited_lock_files_are_reported(shop: Project) -> None:
    for content in (b"{", b"[]", b'{"hash": 1}', nested(200).encode(), b'{"a": 1, "a": 2}'):
        shop.write(LOCK, content)
        check(shop).fails(4, "EM033")
        shop.run("schema", "show", CAPTURED).fails(2, "Restore the lock file from version control")
        shop.run("schema", "diff", f"{CAPTURED}@1", CAPTURED).fails(2)


def test_names_that_do_not_exist_are_usage_errors(shop: Project) -> None:
    wrong = {
        ("show", "payments.nothing"): "payments.payment_captured",
        ("show", f"{CAPTURED}@7"): "no frozen version 7",
        ("show", f"{CAPTURED}@1.4"): "no revision 4",
        ("show", f"{CAPTURED}@x"): "@x",
        ("show", "../../etc@1"): "not frozen",
        ("diff", "nothing", CAPTURED): "'nothing'",
        ("import", "x.json", "--name", "Nonsense"): "x.json",
    }
    ends = shop.run_all(*(["schema", *line] for line in wrong))
    for ended, words in zip(ends, wrong.values(), strict=True):
        ended.fails(2, words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_a_usage_error(project: Project) -> None:
    project.write("secret.json", "{}").chmod(0)
    project.run("schema", "diff", "secret.json", "secret.json").fails(2, "secret.json")


def test_control_characters_are_escaped_in_the_terminal(shop: Project) -> None:
    change(shop, "    amount: Decimal\n", '    amount: Decimal = Field(alias="\\x1b[2J\\x9b")\n')
    change(shop, "from decimal", "from pydantic import Field\nfrom decimal")
    ended = check(shop)
    assert ended.code == 4, ended.said
    assert not {"\x1b", "\x9b"} & set(ended.said)
