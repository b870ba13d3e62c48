from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmesh.errors import Drift, UsageError
from eventmesh.runtime.declaring.discovery import load_services, service_targets

Project = Callable[..., Path]

GOOD = "from eventmesh import Service\nservice = Service({name!r})\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Writes modules, as keywords, and a pyproject.toml that names each as a service."""
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(lines: str | None = None, **sources: str) -> Path:
        for name, source in sources.items():
            (tmp_path / f"em_test_{name}.py").write_text(source.format(name=name))
        if lines is None:
            lines = "\n".join(f'{name} = "em_test_{name}:service"' for name in sources)
        (tmp_path / "pyproject.toml").write_text(f"[tool.eventmesh.services]\n{lines}\n")
        return tmp_path

    yield write
    for name in set(sys.modules) - modules:
        if name.startswith("em_test_"):
            del sys.modules[name]


def test_services_are_found_by_convention(tmp_path: Path) -> None:
    for name in ("orders", "payments"):
        (tmp_path / "services" / name).mkdir(parents=True)
        (tmp_path / "services" / name / "service.py").touch()
    (tmp_path / "services" / "no_service").mkdir()
    assert service_targets(tmp_path) == {
        "orders": "services.orders.service:service",
        "payments": "services.payments.service:service",
    }


def test_pyproject_takes_precedence_over_the_convention(tmp_path: Path, project: Project) -> None:
    (tmp_path / "services" / "orders").mkdir(parents=True)
    (tmp_path / "services" / "orders" / "service.py").touch()
    assert service_targets(project('orders = "elsewhere:it"')) == {"orders": "elsewhere:it"}


def test_a_pyproject_without_services_defines_none(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert service_targets(tmp_path) == {}


def test_the_error_names_a_pyproject_that_is_not_valid_toml(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[[[")
    with pytest.raises(UsageError, match=r"pyproject.toml cannot be read: "):
        service_targets(tmp_path)


def test_the_error_names_a_table_of_eventmesh_that_is_misspelt(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.eventmesh.service]\norders = 'a:b'\n")
    with pytest.raises(UsageError, match=r"eventmesh.service is not known. .*eventmesh.services\]"):
        service_targets(tmp_path)


@pytest.mark.parametrize("lines", ["orders = 1", "orders = ['a', 'b']"])
def test_a_service_in_pyproject_must_be_a_string(project: Project, lines: str) -> None:
    with pytest.raises(UsageError, match="takes lines of name"):
        service_targets(project(lines))


def test_named_services_are_loaded_once_in_the_given_order(project: Project) -> None:
    root = project(one=GOOD, two=GOOD)
    assert [each.name for each in load_services(["two", "one", "two"], root)] == ["two", "one"]


def test_all_services_are_loaded_when_none_is_named(project: Project) -> None:
    assert [each.name for each in load_services([], project(one=GOOD, two=GOOD))] == ["one", "two"]


def test_the_default_attribute_of_a_target_is_service(project: Project) -> None:
    root = project('one = "em_test_one"', one=GOOD)
    assert [each.name for each in load_services(["one"], root)] == ["one"]


def test_the_error_for_a_folder_without_services_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No service was found in .*services/<name>/service.py"):
        load_services([], tmp_path)


def test_the_error_in_a_folder_of_a_project_names_the_folder_of_the_project(
    project: Project,
) -> None:
    root = project(one=GOOD)
    below = root / "services" / "bank"
    below.mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"in {below}\. Run the command in {root}\."):
        load_services([], below)


def test_an_unknown_service_is_rejected_and_the_error_lists_the_known_ones(
    project: Project,
) -> None:
    with pytest.raises(UsageError, match=r"no service 'three' in .* Known are: one, two"):
        load_services(["one", "three"], project(one=GOOD, two=GOOD))


def test_an_error_in_the_module_of_a_service_is_reported_with_file_and_line(
    project: Project,
) -> None:
    root = project(bad="x = 1\nraise RuntimeError('no luck')\n")
    with pytest.raises(
        UsageError,
        match=r"'bad' cannot be imported from em_test_bad: RuntimeError: no luck "
        r"\(.*em_test_bad.py, line 2\)",
    ):
        load_services(["bad"], root)


def test_an_error_in_a_library_is_reported_with_the_line_of_the_users_file(
    project: Project,
) -> None:
    root = project(bad="import json\n\njson.loads('[')\n")
    with pytest.raises(UsageError, match=r"JSONDecodeError: .* \(.*em_test_bad.py, line 3\)"):
        load_services(["bad"], root)


def test_an_error_in_an_imported_module_is_reported_with_its_file_and_line(
    project: Project,
) -> None:
    root = project(
        'bad = "em_test_bad:service"', bad="import em_test_helper\n", helper="\nx = 1 / 0\n"
    )
    with pytest.raises(
        UsageError,
        match=r"'bad' cannot be .* division by zero \(.*em_test_helper.py, line 2\)",
    ):
        load_services(["bad"], root)


def test_a_syntax_error_is_reported_with_file_and_line(project: Project) -> None:
    root = project(bad="x = 1\ndef (\n")
    with pytest.raises(UsageError, match=r"SyntaxError: .* \(.*em_test_bad.py, line 2\)"):
        load_services(["bad"], root)


def test_a_missing_module_is_reported_without_file_and_line(project: Project) -> None:
    root = project('bad = "em_test_not_there"')
    with pytest.raises(UsageError, match=r"No module named 'em_test_not_there'\.$"):
        load_services(["bad"], root)


def test_a_missing_import_in_the_module_of_a_service_is_reported(project: Project) -> None:
    root = project(bad="import em_test_not_there\n")
    with pytest.raises(UsageError, match=r"'em_test_not_there' \(.*em_test_bad.py, line 1\)"):
        load_services(["bad"], root)


def test_a_mistake_in_a_declaration_is_reported_with_file_and_line(project: Project) -> None:
    root = project(bad=GOOD + "from eventmesh import constant\n\nconstant('soon')\n")
    with pytest.raises(
        UsageError, match=r"'soon' is not a valid duration: .* \(.*em_test_bad.py, line 5\)\.$"
    ):
        load_services(["bad"], root)


def test_an_eventmesh_error_in_the_module_of_a_service_is_not_wrapped(project: Project) -> None:
    root = project(bad="from eventmesh.errors import Drift\nraise Drift('changed')\n")
    with pytest.raises(Drift, match="changed"):
        load_services(["bad"], root)


@pytest.mark.parametrize("source", ["service = 1\n", "other = 1\n"])
def test_a_target_that_is_not_a_service_is_rejected(project: Project, source: str) -> None:
    with pytest.raises(UsageError, match="em_test_bad has no Service of the name 'service'"):
        load_services(["bad"], project(bad=source))


def test_a_service_must_have_the_name_under_which_it_is_listed(project: Project) -> None:
    root = project('alias = "em_test_one:service"', one=GOOD)
    with pytest.raises(UsageError, match="is named 'one', but was looked up as 'alias'"):
        load_services(["alias"], root)
