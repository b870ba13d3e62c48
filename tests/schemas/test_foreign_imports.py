"""Every import of another service's code is found, and nothing else is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from eventmesh.contracts.problem import Place, Problem
from eventmesh.review.foreign_imports import foreign_imports, homes, place_of_service
from eventmesh.review.python_sources import MAX_BYTES, Sources
from eventmesh.runtime.declaring.discovery import service_targets

ROOT = Path(__file__).resolve().parents[2]

PROJECT = {
    "services/orders/__init__.py": "",
    "services/orders/service.py": 'service = Service("orders")\n',
    "services/orders/contracts.py": "",
    "services/payments/__init__.py": "",
    "services/payments/service.py": "from services.payments import models\n",
    "services/payments/models.py": "",
    "services/payments/contracts.py": "class PaymentCaptured: ...\n",
    "services/demo/run.py": "import services.orders.service, services.payments.models\n",
    "shared/__init__.py": "",
    "shared/money.py": "import decimal\n",
}
"""Two services, a package that is not a service, and a shared library."""


def write(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def found(root: Path, **files: str) -> list[Problem]:
    """The problems of the project with these modules in orders, named without `.py`."""
    write(root, PROJECT | {f"services/orders/{name}.py": text for name, text in files.items()})
    return foreign_imports(service_targets(root), Sources(root))


def test_a_project_without_foreign_imports_has_no_problems(tmp_path: Path) -> None:
    text = "import json\nimport eventmesh\nfrom shared import money\nfrom . import contracts\n"
    assert found(tmp_path, handlers=text) == []


def test_the_shop_has_no_foreign_imports() -> None:
    assert foreign_imports(service_targets(ROOT), Sources(ROOT)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import services.payments",
        "import services.payments.contracts as theirs",
        "import json, services.payments.models",
        "from services import payments",
        "from services import payments as p, orders",
        "from services.payments import PaymentCaptured",
        "from services.payments.contracts import PaymentCaptured, Other",
        "from services.payments.contracts import *",
        "from ..payments.contracts import PaymentCaptured",
        "from .. import payments",
        "def late():\n    from services.payments import models",
        "class Late:\n    from services.payments import models",
        "if TYPE_CHECKING:\n    from services.payments import models",
        "try:\n    import services.payments\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('services.payments.models')",
        "from importlib import import_module\nimport_module('..payments', 'services.orders')",
        "import_module('..payments.models', package=__package__)",
        "import_module(name='services.payments')",
        "models = __import__('services.payments.models')",
        "pkgutil.resolve_name('services.payments.service:service')",
    ],
)
def test_every_form_of_import_is_found(tmp_path: Path, text: str) -> None:
    [problem] = found(tmp_path, handlers=text)
    assert (problem.rule, problem.severity) == ("EM055", "error")
    assert problem.parties == ("orders", "payments")
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "payments" in row)
    assert problem.place == Place("services/orders/handlers.py", line)
    assert "services.payments" in problem.summary
    assert problem.summary.startswith(f"Line {line} of services/orders/handlers.py imports")


def test_an_import_in_the_package_itself_is_found(tmp_path: Path) -> None:
    [problem] = found(tmp_path, __init__="\nfrom ..payments import models\n")
    assert problem.place == Place("services/orders/__init__.py", 2)


def test_an_import_in_a_folder_without_init_is_found(tmp_path: Path) -> None:
    [problem] = found(tmp_path, **{"tools/deep/fix": "from ....payments import models"})
    assert problem.place == Place("services/orders/tools/deep/fix.py", 1)


def test_each_import_statement_is_reported_once(tmp_path: Path) -> None:
    problems = found(
        tmp_path,
        one="from services.payments.contracts import A, B\nfrom services.payments import models\n",
        two="from services.payments.contracts import A\n",
    )
    assert [(p.place.file, p.place.line) for p in problems if p.place] == [
        ("services/orders/one.py", 1),
        ("services/orders/one.py", 2),
        ("services/orders/two.py", 1),
    ]
    assert len({problem.fingerprint for problem in problems}) == 3


def test_the_fingerprint_of_a_finding_does_not_depend_on_its_line(tmp_path: Path) -> None:
    [before] = found(tmp_path, handlers="import services.payments")
    [after] = found(tmp_path, handlers="import json\n\nimport services.payments")
    assert before.place != after.place
    assert before.fingerprint == after.fingerprint


def test_an_import_through_a_shared_library_is_found(tmp_path: Path) -> None:
    write(tmp_path, {"shared/deep.py": "from shared import cards\n"})
    write(tmp_path, {"shared/cards.py": "def card():\n    import services.payments.models\n"})
    [problem] = found(tmp_path, handlers="\nimport shared.deep\n")
    assert problem.place == Place("services/orders/handlers.py", 2)
    assert problem.parties == ("orders", "payments")
    assert "imports shared.deep, which imports code of service payments" in problem.summary
    assert "through shared.cards" in problem.summary


def test_a_library_that_imports_several_services_is_reported_once(tmp_path: Path) -> None:
    write(tmp_path, {"services/shipping/service.py": ""})
    write(tmp_path, {"shared/all.py": "import services.shipping\nimport services.payments\n"})
    [problem] = found(tmp_path, handlers="from shared import all")
    assert problem.parties == ("orders", "payments", "shipping")


def test_a_name_that_the_common_package_imports_from_a_service_belongs_to_that_service(
    tmp_path: Path,
) -> None:
    text = "from .payments.contracts import PaymentCaptured as Paid\nfrom shared import money\n"
    write(tmp_path, {"services/__init__.py": text})
    assert found(tmp_path, handlers="from services import money") == []
    [problem] = found(tmp_path, handlers="from services import Paid")
    assert problem.parties == ("orders", "payments")
    assert "services" in problem.summary


def test_libraries_that_import_each_other_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, {"shared/a.py": "import shared.b\n", "shared/b.py": "import shared.a\n"})
    assert found(tmp_path, handlers="import shared.a") == []


def test_a_package_with_a_similar_name_is_not_a_service(tmp_path: Path) -> None:
    write(tmp_path, {"services/payments_client/__init__.py": ""})
    assert found(tmp_path, handlers="from services import payments_client\nimport payments") == []


def test_services_in_the_same_package_are_distinguished_by_module(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "shop/__init__.py": "",
            "shop/orders.py": "from shop import common\nfrom . import payments\n",
            "shop/payments.py": "from .common import x\n",
            "shop/common.py": "",
        },
    )
    targets = {"orders": "shop.orders:service", "payments": "shop.payments:service"}
    [problem] = foreign_imports(targets, Sources(tmp_path))
    assert problem.place == Place("shop/orders.py", 2)


def test_a_service_inside_the_folder_of_another_is_a_separate_service(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "app/service.py": "from app import helpers\n",
            "app/helpers.py": "",
            "app/billing/service.py": "from app.billing import rules\n",
            "app/billing/rules.py": "from app import helpers\n",
        },
    )
    targets = {"app": "app.service:service", "billing": "app.billing.service:service"}
    [problem] = foreign_imports(targets, Sources(tmp_path))
    assert problem.parties == ("billing", "app")
    assert problem.place == Place("app/billing/rules.py", 1)


def test_services_below_src_are_checked(tmp_path: Path) -> None:
    write(tmp_path, {"src/orders/service.py": "import payments.service\n"})
    write(tmp_path, {"src/payments/service.py": ""})
    targets = {"orders": "orders.service:service", "payments": "payments.service"}
    [problem] = foreign_imports(targets, Sources(tmp_path))
    assert problem.place == Place("src/orders/service.py", 1)


def test_checking_imports_and_runs_no_module(tmp_path: Path) -> None:
    before = set(sys.modules)
    found(tmp_path, handlers="raise SystemExit('run')\n", trap="import shared.boom")
    write(tmp_path, {"shared/boom.py": "raise SystemExit('run')\n"})
    assert foreign_imports(service_targets(tmp_path), Sources(tmp_path)) == []
    assert {name for name in set(sys.modules) - before if "shared" in name} == set()


def test_only_the_given_services_are_checked(tmp_path: Path) -> None:
    found(tmp_path, handlers="import services.payments")
    targets = service_targets(tmp_path)
    assert foreign_imports(targets, Sources(tmp_path), of={"payments"}) == []
    assert len(foreign_imports(targets, Sources(tmp_path), of={"orders"})) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"def broken(:\n", "not valid Python"),
        (b"\xff\xfe\x00nonsense", "not valid Python"),
        (b"x = 'a\x00b'\n", "not valid Python"),
        (b"# coding: klingon\n", "not valid Python"),
        (b"x = '\xe4'\n", "not valid Python"),
        (b"(" * 5_000 + b")" * 5_000, "not valid Python"),
        (b"#" * (MAX_BYTES + 1), "larger than 2,000,000 bytes"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_a_problem(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    write(tmp_path, {"services/orders/invalid.py": content})
    [problem] = found(tmp_path)
    assert problem.rule == "EM055"
    assert problem.parties == ("orders",)
    assert problem.place is not None
    assert problem.place.file == "services/orders/invalid.py"
    assert reason in problem.summary


def test_a_long_expression_can_be_parsed(tmp_path: Path) -> None:
    text = "import services.payments\nx = " + "+".join(["1"] * 3_000)
    assert len(found(tmp_path, handlers=text)) == 1


def test_a_file_with_a_syntax_warning_is_read_without_a_warning(tmp_path: Path) -> None:
    assert found(tmp_path, handlers="x = '\\d'\nassert (x, 'always')\n") == []


def test_a_broken_symbolic_link_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    (tmp_path / "services/orders/gone.py").symlink_to(tmp_path / "nowhere.py")
    [problem] = found(tmp_path)
    assert problem.place == Place("services/orders/gone.py", 1)


def test_a_named_pipe_is_a_problem_and_does_not_block(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    os.mkfifo(tmp_path / "services/orders/pipe.py")
    [problem] = found(tmp_path)
    assert problem.place == Place("services/orders/pipe.py", 1)


@pytest.mark.parametrize("link", ["services/orders/theirs", "services/orders/theirs.py"])
def test_a_symbolic_link_into_another_service_is_a_foreign_import(
    tmp_path: Path, link: str
) -> None:
    write(tmp_path, PROJECT)
    target = "services/payments/models.py" if link.endswith(".py") else "services/payments"
    (tmp_path / link).symlink_to(tmp_path / target)
    [problem] = found(tmp_path)
    assert problem.parties == ("orders", "payments")
    assert problem.place == Place(link, 1)
    assert "is a symbolic link" in problem.summary


def test_cyclic_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    (tmp_path / "services/orders/again").symlink_to(tmp_path / "services/orders")
    assert found(tmp_path) == []


def test_the_place_of_a_service_is_its_declaration(tmp_path: Path) -> None:
    found(tmp_path)
    sources = Sources(tmp_path)
    known = homes(service_targets(tmp_path), sources.root)
    assert place_of_service("orders", known["orders"], sources) == Place(
        "services/orders/service.py", 1
    )
    other = place_of_service("payments", known["payments"], sources)
    assert other is not None
    assert other.file.startswith("services/payments/")
