"""A JSON Schema that somebody else wrote, as a read model in Python.

The model is written by datamodel-code-generator, in a process of its own with a limit of time; no
network is used. What it wrote is looked through before it is run.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from eventmesh.contracts.message import Event
from eventmesh.errors import EventMeshError, UsageError
from eventmesh.review.reference_cycles import find_cycle

_PATIENCE = 60
_ROOT = "EventMeshImported"
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_MODULES = {
    *("__future__", "collections.abc", "datetime", "decimal", "enum", "ipaddress", "pathlib"),
    *("pydantic", "typing", "typing_extensions", "uuid"),
}
_TYPES = {"bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "set", "str"}
_GENERATOR = f"""
import sys
from datamodel_code_generator import DataModelType, InputFileType, PythonVersion, generate
from datamodel_code_generator.config import GenerateConfig
from datamodel_code_generator.format import DatetimeClassType

sys.stdout.reconfigure(encoding="utf-8")
config = GenerateConfig(
    input_file_type=InputFileType.JsonSchema,
    output_model_type=DataModelType.PydanticV2BaseModel,
    output_datetime_class=DatetimeClassType.Datetime,
    target_python_version=PythonVersion.PY_311,
    class_name={_ROOT!r},
    allow_remote_refs=False,
    strict_refs=True,
    disable_timestamp=True,
    use_annotated=True,
    field_constraints=True,
    extra_fields="ignore",
    enum_field_as_literal="all",
    collapse_root_models=True,
    use_tuple_for_fixed_items=True,
    formatters=[],
    custom_file_header="#",
)
sys.stdout.write(generate(sys.stdin.buffer.read().decode(), config=config))
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was made of a schema: the text of a module, and the model that is in it."""

    text: str
    model: type[Event]


def import_schema(schema: dict[str, Any], name: str, version: int) -> Imported:
    """A module with a read model of this message; UsageError when none can be made of the schema,
    which must be of an object and refer to nothing outside itself."""
    if not _NAME.fullmatch(name):
        raise UsageError(f'The message name {name!r} cannot be used: write "<owner>.<what>".')
    _refuse_circles(schema)
    tree = ast.parse(_generated(schema))
    class_name = _class_name(name, tree)
    module = _Reader(class_name, name, version).visit(tree)
    _look_through(module)
    text = _spelled(ast.fix_missing_locations(module))
    return Imported(text, _loaded(text, class_name))


def _refuse_circles(schema: dict[str, Any]) -> None:
    try:
        reference = find_cycle(schema)
    except RecursionError:
        raise UsageError("The schema's references lead to one another without end.") from None
    if reference is not None:
        raise UsageError(
            f"The schema's {reference} leads back to itself without going down into a field: it "
            f"says nothing. Correct the schema."
        )


def _generated(schema: dict[str, Any]) -> str:
    if importlib.util.find_spec("datamodel_code_generator") is None:
        raise UsageError(
            "A schema is turned into Python by datamodel-code-generator, which is not installed: "
            "pip install 'eventmesh[import]'."
        )
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and program
            [sys.executable, "-P", "-c", _GENERATOR],
            input=json.dumps(schema).encode(),
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"The schema is too intricate: no Python could be made of it within {_PATIENCE} s."
        ) from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
        raise UsageError(f"No Python can be made of the schema: {last[-1].rstrip('.')[:500]}.")
    return done.stdout.decode()


def _class_name(name: str, tree: ast.Module) -> str:
    """After the message, and not the name of a class that is there already."""
    taken = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    wanted = "".join(word.capitalize() for word in re.split(r"[._]", name.partition(".")[2]))
    while wanted in taken or hasattr(builtins, wanted) or wanted in ("Event", "Field"):
        wanted += "Message"
    return wanted


class _Reader(ast.NodeTransformer):
    """Makes the message of the root class, and a tolerant reader of every class."""

    def __init__(self, class_name: str, name: str, version: int) -> None:
        self._class_name, self._name, self._version = class_name, name, version

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id == _ROOT:
            node.id = self._class_name
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        ignoring = "model_config = ConfigDict(extra='ignore')"
        node.body = [part for part in node.body if ast.unparse(part) != ignoring] or [ast.Pass()]
        if node.name == _ROOT:
            self._make_message(node)
        return node

    def _make_message(self, node: ast.ClassDef) -> None:
        if any(ast.unparse(base).startswith("RootModel") for base in node.bases):
            raise UsageError("A message is an object with fields, and the schema is of none.")
        others = [base for base in node.bases if ast.unparse(base) != "BaseModel"]
        node.name, node.bases = self._class_name, [*others, ast.Name("Event")]
        node.keywords = [
            ast.keyword("name", ast.Constant(self._name)),
            ast.keyword("version", ast.Constant(self._version)),
        ]


def _look_through(module: ast.Module) -> None:
    """UsageError when the text does anything but declare models: whoever wrote the schema may have
    tried to write Python in it."""
    known = {"Event", *_TYPES}
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.ImportFrom) and node.module in _MODULES and not node.level:
            known.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            known.update(target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef):
            raise _suspicious(node)
    for node in ast.walk(module):
        strange = isinstance(node, ast.Name) and node.id not in known
        if strange or (isinstance(node, ast.Attribute) and node.attr.startswith("_")):
            raise _suspicious(node)


def _suspicious(node: ast.AST) -> UsageError:
    return UsageError(
        f"What was made of the schema is more than models, and is not run: "
        f"{ast.unparse(node)!r:.200}."
    )


def _spelled(module: ast.Module) -> str:
    """Imports without what is not used, then the rest, two empty lines apart."""
    used = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    imports = {"eventmesh": ["Event"]}
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__"):
            names = sorted(alias.name for alias in node.names if alias.name in used)
            imports.setdefault(str(node.module), []).extend(names)
    lines = [
        f"from {module_name} import {', '.join(names)}"
        for module_name, names in sorted(imports.items(), key=_library)
        if names
    ]
    rest = [ast.unparse(node) for node in module.body if not isinstance(node, ast.ImportFrom)]
    head = "from __future__ import annotations\n\n" + "\n".join(lines)
    return "\n\n\n".join([head, *rest]) + "\n"


def _library(entry: tuple[str, list[str]]) -> tuple[bool, str]:
    return entry[0] in ("eventmesh", "pydantic"), entry[0]


def _loaded(text: str, class_name: str) -> type[Event]:
    """The model, from the module as it would be imported."""
    module = ModuleType("eventmesh_imported_schema")
    sys.modules[module.__name__] = module  # where pydantic looks annotations up
    try:
        exec(compile(text, "<imported schema>", "exec"), vars(module))  # noqa: S102  # looked through
        model: type[Event] = getattr(module, class_name)
        model.model_json_schema()
    except EventMeshError:
        raise
    except (Exception, RecursionError) as error:  # noqa: BLE001  # whatever pydantic refuses
        reason = " ".join(str(error).split())[:500]
        raise UsageError(f"No model can be made of the schema: {reason.rstrip('.')}.") from None
    finally:
        del sys.modules[module.__name__]
    return model
