"""What can be written of an upcaster without knowing what the fields mean."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eventmesh.compat import Compatible, compare

_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Step:
    """From the data of one version to that of the next."""

    gone: tuple[str, ...]
    """Fields that the next version has not: they are dropped."""
    asked: tuple[tuple[str, str], ...]
    """Fields that a person must decide about, each with the reason."""

    @property
    def derived(self) -> bool:
        """Whether nothing is left to decide."""
        return not self.asked


def step_between(writer: dict[str, Any], reader: dict[str, Any]) -> Step:
    """What leads from what the old version writes to what the new model reads.

    Only whole fields of the message are derived; within them, it is a person who must decide.
    """
    before, after = _Object.of(writer), _Object.of(reader)
    gone = sorted(before.fields.keys() - after.fields.keys())
    new = sorted(after.required - before.fields.keys())
    asked = [(name, _renaming(name, gone, before, after)) for name in new]
    for name in sorted(before.fields.keys() & after.fields.keys()):
        if name in after.required and name not in before.required:
            asked.append((name, "it is required now, and the old version may leave it out"))
        elif not isinstance(compare(before.field(name), after.field(name)), Compatible):
            asked.append((name, "the new version does not take all that the old one says there"))
    return Step(tuple(gone), tuple(asked))


def upcaster(class_name: str, message: str, version: int, step: Step) -> list[str]:
    """The lines of an upcaster from this version."""
    return [
        f"@{class_name}.upcaster(from_version={version})",
        f"def {_function(message, version)}(data: dict) -> dict:",
        f'    """Data of version {version} as version {version + 1} has it."""',
        *(f"    {line}" if line else "" for line in _body(message, version, step)),
    ]


def _body(message: str, version: int, step: Step) -> Iterator[str]:
    kept = "data"
    if step.gone:
        yield f"gone = {{{', '.join(map(quoted, step.gone))}}}"
        yield "kept = {name: value for name, value in data.items() if name not in gone}"
        kept = "kept"
    if step.derived:
        yield f"return {kept}"
        return
    yield f"# TODO: what does version {version} mean for these? Write it below, and raise no more."
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
    """The text as Python writes it, in double quotes where that needs no more escapes."""
    shown = ascii(text) if not text.isprintable() else repr(text)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in text else shown


def _function(message: str, version: int) -> str:
    name = message.rpartition(".")[2]
    return f"{name}_from_version_{version}"


@dataclass(frozen=True, slots=True)
class _Object:
    """A schema of an object, with what its references need."""

    fields: dict[str, Any]
    required: set[str]
    definitions: dict[str, Any]

    @classmethod
    def of(cls, schema: dict[str, Any]) -> _Object:
        definitions: dict[str, Any] = {
            name: schema[name] for name in ("$defs", "definitions") if name in schema
        }
        seen = 0
        while isinstance(reference := schema.get("$ref"), str) and seen < 10:
            seen += 1
            inner = definitions.get("$defs", {}).get(reference.rpartition("/")[2])
            if not isinstance(inner, dict):
                break
            schema = inner
        return cls(dict(schema.get("properties", {})), set(schema.get("required", ())), definitions)

    def field(self, name: str) -> Any:
        schema = self.fields[name]
        return {**schema, **self.definitions} if isinstance(schema, dict) else schema
