"""Generating the part of an upcaster that follows from the two schemas.

Fields that the new version does not have are dropped. A field that the new version requires and the
old one may lack needs a value, and only a person knows which: the stub lists it with a TODO, and
raises NotImplementedError.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eventmesh.compat import Compatible, compare
from eventmesh.compat.schema.pointers import resolve_reference

_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Step:
    """What an upcaster has to do, and what is left to decide."""

    gone: tuple[str, ...]
    """Fields that the next version does not have."""
    asked: tuple[tuple[str, str], ...]
    """Fields about which a person must decide, each with the reason."""

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to decide."""
        return not self.asked


def step_between(writer: dict[str, Any], reader: dict[str, Any]) -> Step:
    """The changes that turn data of the old version into data that the new one reads.

    Only top-level fields are compared; a difference inside a field is left to a person.
    """
    before, after = _Object.of(writer), _Object.of(reader)
    gone = sorted(before.fields.keys() - after.fields.keys())
    new = sorted(after.required - before.fields.keys())
    asked = [(name, _renaming(name, gone, before, after)) for name in new]
    for name in sorted(before.fields.keys() & after.fields.keys()):
        if name in after.required and name not in before.required:
            asked.append((name, "it is required now, and the old version may lack it"))
        elif not isinstance(compare(before.field(name), after.field(name)), Compatible):
            asked.append((name, "the new version does not accept all its old values"))
    return Step(tuple(gone), tuple(asked))


def upcaster(class_name: str, message: str, version: int, step: Step) -> list[str]:
    """The source lines of an upcaster from this version."""
    return [
        f"@{class_name}.upcaster(from_version={version})",
        f"def {_function(message, version)}(data: dict) -> dict:",
        f'    """Converts data of version {version} to version {version + 1}."""',
        *(f"    {line}" if line else "" for line in _body(message, version, step)),
    ]


def _body(message: str, version: int, step: Step) -> Iterator[str]:
    kept = "data"
    if step.gone:
        yield f"gone = {{{', '.join(map(quoted, step.gone))}}}"
        yield "kept = {name: value for name, value in data.items() if name not in gone}"
        kept = "kept"
    if step.is_complete:
        yield f"return {kept}"
        return
    yield f"# TODO: which values do messages of version {version} get here? Then delete the raise."
    for name, reason in step.asked:
        yield from _comment(f"{name}: {reason}")
    names = ", ".join(name for name, _ in step.asked)
    yield from _raise(quoted(f"{message} v{version}: decide about {names}"))
    values = ", ".join(f"{quoted(name)}: ..." for name, _ in step.asked)
    yield f"return {kept} | {{{values}}}"


def _raise(text: str) -> Iterator[str]:
    if len(line := f"raise NotImplementedError({text})") < _WIDTH:
        yield line
    else:
        yield from ("raise NotImplementedError(", f"    {text}", ")")


def _renaming(name: str, gone: Sequence[str], before: _Object, after: _Object) -> str:
    reason = "it is required, and the old version does not have it"
    likely = [old for old in gone if _same(before.field(old), after.field(name))]
    if len(likely) == 1:
        reason += f'; if it is {likely[0]!r} under a new name, write data["{likely[0]}"]'
    return reason


def _same(before: Any, after: Any) -> bool:
    return isinstance(compare(before, after), Compatible)


def _comment(text: str) -> Iterator[str]:
    text = "".join(char if char.isprintable() else " " for char in text)
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent="#   ", subsequent_indent="#     ", break_long_words=False
    )


def quoted(text: str) -> str:
    """The text as a Python literal, in double quotes unless it contains some."""
    shown = ascii(text) if not text.isprintable() else repr(text)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in text else shown


def _function(message: str, version: int) -> str:
    name = message.rpartition(".")[2]
    return f"{name}_from_version_{version}"


@dataclass(frozen=True, slots=True)
class _Object:
    """The fields of an object schema, with the definitions that they refer to."""

    fields: dict[str, Any]
    required: set[str]
    definitions: dict[str, Any]

    @classmethod
    def of(cls, schema: dict[str, Any]) -> _Object:
        definitions: dict[str, Any] = {
            name: schema[name] for name in ("$defs", "definitions") if name in schema
        }
        root = schema
        for _ in range(10):  # references may form a cycle
            reference = schema.get("$ref")
            inner = resolve_reference(root, reference) if isinstance(reference, str) else None
            if not isinstance(inner, dict):
                break
            schema = inner
        return cls(dict(schema.get("properties", {})), set(schema.get("required", ())), definitions)

    def field(self, name: str) -> Any:
        schema = self.fields[name]
        return {**schema, **self.definitions} if isinstance(schema, dict) else schema
