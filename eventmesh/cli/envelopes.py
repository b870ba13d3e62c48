"""How a message is shown by `dlq show` and `outbox show`, as text or as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eventmesh.printable import printable, printable_lines

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.wire.envelope import Envelope


def as_dict(envelope: Envelope) -> dict[str, Any]:
    """The envelope for JSON. Data that is not UTF-8 is also given exactly, as base64."""
    data = envelope.data
    exact = {} if _is_text(data) else {"data_base64": base64.b64encode(data).decode()}
    return {
        "attributes": dict(envelope.attributes),
        "data": data.decode("utf-8", errors="backslashreplace"),
        **exact,
    }


def for_people(details: Mapping[str, Any]) -> str:
    """One line for each detail. The attributes and the lines of a traceback are indented below it,
    so that none of them can be mistaken for a detail."""
    lines = []
    for name, value in details.items():
        if name == "data_base64":  # for programs
            continue
        shown, further = "" if value is None else str(value), list[str]()
        if isinstance(value, Mapping):
            shown, further = "", [f"{key} = {each}" for key, each in value.items()]
        elif name == "error":
            shown, *further = printable_lines(shown).split("\n")
        lines.append(f"{name}: {printable(shown)}".rstrip())
        lines += [f"    {printable(line)}" for line in further]
    return "\n".join(lines)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
