from __future__ import annotations

import io
import json
import socket
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from eventmesh.compat import Compatible
from eventmesh.compat.pydantic_models.comparison import compare_model
from eventmesh.errors import UsageError
from eventmesh.review import schema_import
from eventmesh.review.bundling import bundle
from eventmesh.review.reference_cycles import find_cycle
from eventmesh.review.schema_import import Imported, import_schema

CUSTOMER: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "additionalProperties": False,
    "required": ["id", "class"],
    "properties": {
        "id": {"type": "string", "format": "uuid", "description": 'the "id"'},
        "class": {"enum": ["new", "old"]},
        "customer-no": {"type": ["string", "null"], "maxLength": 5},
        "address": {"$ref": "#/definitions/Address"},
        "tags": {"type": "array", "items": {"type": "integer"}},
    },
    "definitions": {
        "Address": {
            "type": "object",
            "properties": {"street": {"type": "string"}},
            "required": ["street"],
        }
    },
}


def write(path: Path, schema: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return path


def imported(schema: Any) -> Imported:
    return import_schema(schema, "crm.customer_created", 3)


def an_object(properties: Any, **definitions: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "$defs": definitions}


def outcome(schema: Any) -> str:
    """The text of the error; empty if the import succeeds."""
    try:
        imported(schema).model.model_json_schema()
    except UsageError as error:
        return str(error)
    return ""


@pytest.fixture
def generator_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator runs in this process: each process of its own would import it again. What it
    does with the schema, and what is made of its code, are the same."""

    def run(command: Sequence[str], *, input: bytes, **_: object) -> CompletedProcess[bytes]:  # noqa: A002
        out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(input)))
        try:
            with redirect_stdout(out), warnings.catch_warnings(action="ignore"):
                exec(command[-1], {})  # noqa: S102  # our own program
        except Exception:  # noqa: BLE001  # shown as Python shows it
            return CompletedProcess(command, 1, b"", traceback.format_exc().encode())
        out.flush()
        return CompletedProcess(command, 0, out.buffer.getvalue(), b"")

    monkeypatch.setattr(schema_import.subprocess, "run", run)


in_this_process = pytest.mark.usefixtures("generator_here")

# Files


def test_referenced_schemas_in_other_files_are_bundled(tmp_path: Path) -> None:
    main = write(
        tmp_path / "main.json",
        {
            "type": "object",
            "properties": {
                "a": {"$ref": "parts/a.json"},
                "b": {"$ref": "parts/a.json#/$defs/B"},
                "$ref": {"const": {"$ref": "http://example.org/a value, no reference"}},
            },
        },
    )
    write(tmp_path / "parts/a.json", {"$ref": "#/$defs/B", "$defs": {"B": {"$ref": "../c.json"}}})
    write(tmp_path / "c.json", {"type": ["integer", "null"], "not": {"$ref": "main.json"}})
    bundled = bundle(main)
    assert bundled["properties"] == {
        "a": {"$ref": "#/$defs/a_1"},
        "b": {"$ref": "#/$defs/a_1/$defs/B"},
        "$ref": {"const": {"$ref": "http://example.org/a value, no reference"}},
    }
    assert bundled["$defs"] == {
        "a_1": {"$ref": "#/$defs/a_1/$defs/B", "$defs": {"B": {"$ref": "#/$defs/c_2"}}},
        "c_2": {"type": ["integer", "null"], "not": {"$ref": "#"}},
    }


@pytest.mark.parametrize(
    "reference",
    [
        "http://example.org/a.json",
        "https://example.org/a.json#/x",
        "//example.org/a.json",
        "file:///etc/passwd",
        "urn:example:a",
        "ftp://example.org/",
    ],
)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_remote_reference_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, keyword: str
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    path = write(tmp_path / "a.json", {"allOf": [{"properties": {"x": {keyword: reference}}}]})
    with pytest.raises(UsageError, match="not fetched"):
        bundle(path)


@pytest.mark.parametrize(
    "reference", ["../b.json", "/etc/passwd", "sub/../../b.json", "%2e%2e/b.json", "link.json"]
)
def test_a_file_outside_the_folder_is_not_read(tmp_path: Path, reference: str) -> None:
    write(tmp_path / "b.json", {"type": "string"})
    path = write(tmp_path / "in/a.json", {"properties": {"x": {"$ref": reference}}})
    (tmp_path / "in/link.json").symlink_to(tmp_path / "b.json")
    with pytest.raises(UsageError, match="outside the folder"):
        bundle(path)


def test_a_reference_to_the_schemas_own_id_is_local(tmp_path: Path) -> None:
    schema = {
        "$id": "https://example.org/a",
        "properties": {"x": {"$ref": "https://example.org/a#/$defs/X"}},
        "$defs": {"X": {}},
    }
    assert bundle(write(tmp_path / "a.json", schema))["properties"]["x"] == {"$ref": "#/$defs/X"}


def test_a_reference_to_a_path_that_cannot_be_opened_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "cycle.json").symlink_to("cycle.json")
    for reference in ("cycle.json", "a%00b.json", "x" * 300):
        path = write(tmp_path / "a.json", {"properties": {"x": {"$ref": reference}}})
        with pytest.raises(UsageError):
            bundle(path)


def test_a_reference_that_is_not_a_string_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a string"):
        bundle(write(tmp_path / "a.json", {"properties": {"x": {"$ref": 5}}}))


# Python


def test_the_imported_model_reads_everything_that_the_schema_allows() -> None:
    result = imported(CUSTOMER)
    assert str(result.model.__identity__) == "crm.customer_created v3"
    assert result.model.__name__ == "CustomerCreated"
    read = result.model.model_validate_json(
        '{"id": "c1b1a2a4-7a3c-4a0e-8f5e-000000000001", "class": "new", "address": {"street": "x"},'
        ' "customer-no": null, "added later": 1}'
    )
    assert read.model_dump(by_alias=True)["class"] == "new"
    assert isinstance(compare_model(CUSTOMER, result.model), Compatible)


@in_this_process
def test_the_generated_module_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "imported_contracts.py", imported(CUSTOMER).text)
    monkeypatch.syspath_prepend(tmp_path)
    import imported_contracts  # type: ignore[import-not-found]

    assert imported_contracts.CustomerCreated.__identity__.version == 3


@in_this_process
def test_a_recursive_schema_becomes_a_recursive_model() -> None:
    result = imported(
        {"type": "object", "properties": {"inner": {"$ref": "#"}, "x": {"type": "integer"}}}
    )
    data = '{"inner": {"inner": {"x": 5}}}'
    assert result.model.model_validate_json(data).model_dump_json(
        exclude_none=True
    ) == data.replace(" ", "")


@in_this_process
def test_a_definition_may_have_the_same_name_as_the_message() -> None:
    schema = {
        "type": "object",
        "properties": {"inner": {"$ref": "#/$defs/CustomerCreated"}},
        "$defs": {"CustomerCreated": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }
    result = imported(schema)
    assert set(result.model.model_fields) == {"inner"}


@in_this_process
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer"}},
        {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "integer"}]},
    ],
)
def test_a_schema_that_does_not_describe_an_object_is_rejected(schema: Any) -> None:
    with pytest.raises(UsageError, match=r"not describe an object|No Python"):
        imported(schema)


@in_this_process
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
        {"type": "object", "properties": {"x": {"type": "nonsense"}}},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/Missing"}}},
        {"type": "object", "required": 5},
        {"$ref": "#"},
        an_object({"a": {"$ref": "#/$defs/A"}}, A={"$ref": "#/$defs/A"}),
    ],
)  # fmt: skip
def test_an_invalid_schema_is_imported_or_ends_in_a_short_error(schema: Any) -> None:
    error = outcome(schema)
    assert "Traceback" not in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    "schema",
    [
        an_object({"a": {"$ref": "#/$defs/A"}}, A={"anyOf": [{"$ref": "#/$defs/A"}, {}]}),
        an_object({"a": {"$ref": "#/$defs/A"}}, A={"$ref": "#/$defs/B"}, B={"$ref": "#/$defs/A"}),
        an_object({}, A={"not": {"if": {"allOf": [{"$ref": "#/$defs/A"}]}}}),
        {"$ref": "#"},
        {"type": "object", "oneOf": [{"$ref": "#"}]},
    ],
)
def test_a_reference_cycle_without_content_is_rejected(schema: Any) -> None:
    with pytest.raises(UsageError, match="leads back to itself"):
        imported(schema)


def test_a_chain_of_thousands_of_references_is_rejected() -> None:
    chain = {f"D{n}": {"$ref": f"#/$defs/D{n + 1}"} for n in range(5_000)}
    with pytest.raises(UsageError):
        imported(an_object({"a": {"$ref": "#/$defs/D0"}}, **chain))


def test_a_recursive_schema_is_not_a_reference_cycle() -> None:
    part = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#"}}}
    assert find_cycle(an_object({"a": {"anyOf": [{"$ref": "#/$defs/A"}]}}, A=part)) is None


HOSTILE = '"""\n\'); import os; os.system("touch broken") #\n'


@in_this_process
@pytest.mark.parametrize(
    "schema",
    [
        an_object({"x": {}}) | {"title": HOSTILE, "description": HOSTILE},
        an_object({HOSTILE: {"type": "string", "default": HOSTILE}}),
        an_object({"x": {"enum": [HOSTILE, "__import__('os')"]}}),
        an_object({"x": {"const": HOSTILE, "description": HOSTILE}}),
        an_object({"x": {"type": "string", "pattern": HOSTILE, "default": "{x}"}}),
        an_object({"x": {"$ref": "#/$defs/A"}}, A=an_object({"y": {}}) | {"title": HOSTILE}),
        an_object({"x": {"type": "string", "format": HOSTILE}}),
        an_object({"__class__": {"type": "string"}, "__init__": {}, "model_config": {}, "_x": {}}),
        an_object({"x": {"customTypePath": "os.system", "type": "string"}}),
        an_object({"x": an_object({"y": {}}) | {"customBasePath": "os.path"}}),
    ],
)
def test_a_hostile_schema_executes_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Traceback" not in outcome(schema)
    assert list(tmp_path.iterdir()) == []


@in_this_process
def test_a_schema_cannot_import_modules() -> None:
    for path in ("os.system", "subprocess.run", "sys.modules"):
        schema = an_object({"x": {"customTypePath": path, "type": "string"}})
        assert "was not run" in outcome(schema)


def test_the_error_without_the_generator_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schema_import.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'eventmesh\[import\]'"):
        imported(CUSTOMER)


@pytest.mark.parametrize("name", ["Customer", "crm", "crm.Customer", "crm..x", ""])
def test_an_invalid_message_name_is_rejected(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        import_schema(CUSTOMER, name, 1)
