"""Lock files: what one version of a message looks like, frozen so that a change is noticed.

`schemas/<owner>/<message>/v<N>.json` holds the schema of what is written and of what is read, and
a hash over both in a canonical form: titles, descriptions and the order of keys do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eventmesh.contracts.message import Message
from eventmesh.errors import Drift

State = Literal["frozen", "missing", "changed", "broken"]

_NOT_PART_OF_THE_CONTRACT = {"title", "description", "examples"}
_VALUES = {"default", "const", "enum"}  # what stands below these is no schema
_MAPS_OF_SCHEMAS = {"properties", "$defs", "patternProperties", "dependentSchemas"}


@dataclass(frozen=True, slots=True)
class Finding:
    """How one message stands against its lock file."""

    state: State
    message: str
    path: Path
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.message}: {self.detail} ({self.path})"


def lock(model: type[Message]) -> dict[str, Any]:
    """The content of the model's lock file."""
    identity = model.__identity__
    contract = {
        "name": identity.name,
        "version": identity.version,
        "kind": identity.kind,
        "key": identity.key,
        "writer": closed(canonical(model.model_json_schema(mode="serialization"))),
        "reader": canonical(model.model_json_schema(mode="validation")),
    }
    return {"status": "active", "hash": fingerprint(contract), **contract}


def fingerprint(contract: dict[str, Any]) -> str:
    """The hash by which two lock files are the same contract; the status is no part of it."""
    parts = [contract[part] for part in ("name", "version", "kind", "key", "writer", "reader")]
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def closed(schema: Any) -> Any:
    """The schema of what is written: no object has fields beyond those it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {
        keyword: value if keyword in _VALUES else closed(value) for keyword, value in schema.items()
    }
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        shut.setdefault("additionalProperties", False)
    return shut


def canonical(schema: Any) -> Any:
    """The schema without titles, descriptions and examples, with its keys in one order."""
    if isinstance(schema, list):
        return [canonical(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for keyword in sorted(schema.keys() - _NOT_PART_OF_THE_CONTRACT):
        value = schema[keyword]
        if keyword in _MAPS_OF_SCHEMAS:  # below these, keys are names and not keywords
            kept[keyword] = {name: canonical(value[name]) for name in sorted(value)}
        elif keyword in _VALUES:
            kept[keyword] = value
        elif keyword == "required":
            kept[keyword] = sorted(value)
        else:
            kept[keyword] = canonical(value)
    return kept


def lock_path(root: Path, model: type[Message]) -> Path:
    """Where the model's lock file is: `<root>/<owner>/<message>/v<N>.json`."""
    owner, _, name = model.__identity__.name.partition(".")
    return root / owner / name / f"v{model.__identity__.version}.json"


def check(models: Iterable[type[Message]], root: Path) -> list[Finding]:
    """How each model stands against its lock file under `root`."""
    return [_check_one(model, lock_path(root, model)) for model in models]


def freeze(models: Iterable[type[Message]], root: Path) -> list[Finding]:
    """Write the lock files that are missing, and say which. A frozen version is never rewritten:
    Drift, and nothing is written at all, when one has changed."""
    models = list(models)
    findings = check(models, root)
    refuse_drift(findings)
    written = []
    for model, finding in zip(models, findings, strict=True):
        if finding.state == "missing":
            finding.path.parent.mkdir(parents=True, exist_ok=True)
            finding.path.write_text(json.dumps(lock(model), indent=2) + "\n", encoding="utf-8")
            written.append(Finding("frozen", finding.message, finding.path, "frozen now"))
    return written


def refuse_drift(findings: Iterable[Finding]) -> None:
    """Drift when a frozen version is not what the code says; a missing one is let pass."""
    drifted = [finding for finding in findings if finding.state in ("changed", "broken")]
    if drifted:
        advice = (
            "Restore the lock file from version control."
            if all(finding.state == "broken" for finding in drifted)
            else "A frozen version never changes: restore the model, or raise its version by one, "
            "add an upcaster from the old version and run `eventmesh schema freeze`."
        )
        raise Drift(
            "The code and the frozen schemas differ. "
            + " ".join(f"{finding}." for finding in drifted)
            + f" {advice}"
        )


def _check_one(model: type[Message], path: Path) -> Finding:
    message = str(model.__identity__)
    if not path.exists():
        return Finding(
            "missing", message, path, "not frozen yet; run `eventmesh schema freeze` and commit it"
        )
    try:
        frozen = json.loads(path.read_text(encoding="utf-8"))
        stated, actual = frozen["hash"], fingerprint(frozen)
    except (ValueError, KeyError, TypeError, OSError) as error:
        return Finding("broken", message, path, f"the lock file cannot be read: {error!r}")
    if stated != actual:
        return Finding("broken", message, path, "the lock file was edited: its hash does not fit")
    current = lock(model)
    if current["hash"] != frozen["hash"]:
        return Finding("changed", message, path, _describe_change(frozen, current))
    return Finding("frozen", message, path, "as frozen")


def _describe_change(frozen: dict[str, Any], current: dict[str, Any]) -> str:
    for part in ("kind", "key"):
        if frozen[part] != current[part]:
            return f"the {part} was {frozen[part]!r} and is {current[part]!r}"
    before, after = _fields(frozen), _fields(current)
    parts = [
        *(f"field {name!r} is new" for name in sorted(after.keys() - before.keys())),
        *(f"field {name!r} is gone" for name in sorted(before.keys() - after.keys())),
        *(
            f"field {name!r} changed"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ),
    ]
    return ", ".join(parts) or "a nested definition changed"


def _fields(locked: dict[str, Any]) -> dict[str, Any]:
    names = {name for side in ("writer", "reader") for name in locked[side].get("properties", {})}
    return {
        name: [
            (locked[side].get("properties", {}).get(name), name in locked[side].get("required", []))
            for side in ("writer", "reader")
        ]
        for name in names
    }
