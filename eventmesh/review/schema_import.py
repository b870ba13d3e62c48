"""Generating a model from a JSON Schema that another team or company wrote.

datamodel-code-generator writes the Python code, in a process of its own with a time limit and
without network. Since a schema can contain text that becomes code, the result is not trusted: it is
run only if it does nothing but declare models. The root class is then made an event, and every
class ignores unknown fields.
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

_TIMEOUT_SECONDS = 60
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
    """The source of a generated module, and the model in it."""

    text: str
    model: type[Event]


def import_schema(schema: dict[str, Any], name: str, version: int) -> Imported:
    """Generate a module with a model of this message.

    The schema must describe an object and refer to nothing outside itself. UsageError if no model
    can be made of it.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f'The message name {name!r} is not valid: write "<owner>.<what>" in lower case.'
        )
    _reject_cycles(schema)
    tree = ast.parse(_generated(schema))
    class_name = _class_name(name, tree)
    module = _MessageMaker(class_name, name, version).visit(tree)
    _reject_code(module)
    text = _source(ast.fix_missing_locations(module))
    return Imported(text, _loaded(text, class_name))


def _reject_cycles(schema: dict[str, Any]) -> None:
    try:
        reference = find_cycle(schema)
    except RecursionError:
        raise UsageError("The references of the schema are nested too deeply.") from None
    if reference is not None:
        raise UsageError(
            f"The reference {reference} of the schema leads back to itself without going down into "
            f"a field, so it describes no value. Correct the schema."
        )


def _generated(schema: dict[str, Any]) -> str:
    if importlib.util.find_spec("datamodel_code_generator") is None:
        raise UsageError(
            "Importing a schema needs datamodel-code-generator, which is not installed. Run: pip "
            "install 'eventmesh[import]'."
        )
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and program
            [sys.executable, "-P", "-c", _GENERATOR],
            input=json.dumps(schema).encode(),
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"The schema is too complex: generating Python code took more than {_TIMEOUT_SECONDS} "
            f"s."
        ) from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
        raise UsageError(
            f"No Python code can be generated from the schema: {last[-1].rstrip('.')[:500]}."
        )
    return done.stdout.decode()


def _class_name(name: str, tree: ast.Module) -> str:
    """A name after the message that no other class has."""
    taken = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    wanted = "".join(word.capitalize() for word in re.split(r"[._]", name.partition(".")[2]))
    while wanted in taken or hasattr(builtins, wanted) or wanted in ("Event", "Field"):
        wanted += "Message"
    return wanted


class _MessageMaker(ast.NodeTransformer):
    """Makes the root class the message, and lets every class ignore unknown fields."""

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
            raise UsageError(
                "The schema does not describe an object, and a message must be an object with "
                "fields."
            )
        others = [base for base in node.bases if ast.unparse(base) != "BaseModel"]
        node.name, node.bases = self._class_name, [*others, ast.Name("Event")]
        node.keywords = [
            ast.keyword("name", ast.Constant(self._name)),
            ast.keyword("version", ast.Constant(self._version)),
        ]


def _reject_code(module: ast.Module) -> None:
    """UsageError if the module does more than declare models: the schema may contain Python code
    that the generator copied."""
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
        f"The code generated from the schema does more than declare models, and was not run: "
        f"{ast.unparse(node)!r:.200}."
    )


def _source(module: ast.Module) -> str:
    """The source: the imports that are used, then the classes, two empty lines apart."""
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
    """Run the module and return its model."""
    module = ModuleType("eventmesh_imported_schema")
    sys.modules[module.__name__] = module  # where pydantic looks up annotations
    try:
        exec(compile(text, "<imported schema>", "exec"), vars(module))  # noqa: S102  # see `_reject_code`
        model: type[Event] = getattr(module, class_name)
        model.model_json_schema()
    except EventMeshError:
        raise
    except (Exception, RecursionError) as error:  # noqa: BLE001  # pydantic raises many kinds
        reason = " ".join(str(error).split())[:500]
        raise UsageError(
            f"No model can be generated from the schema: {reason.rstrip('.')}."
        ) from None
    finally:
        del sys.modules[module.__name__]
    return model
