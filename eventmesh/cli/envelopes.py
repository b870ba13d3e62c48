"""How an envelope is shown."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eventmesh.printable import printable, printable_lines

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.wire.envelope import Envelope


def as_dict(envelope: Envelope) -> dict[str, Any]:
    """For JSON: what it holds, its data as text; also exactly, where they are none."""
    data = envelope.data
    exact = {} if _is_text(data) else {"data_base64": base64.b64encode(data).decode()}
    return {
        "attributes": dict(envelope.attributes),
        "data": data.decode("utf-8", errors="backslashreplace"),
        **exact,
    }


def for_people(details: Mapping[str, Any]) -> str:
    """A line for each detail, except for those that only programs can read. The further lines of a
    traceback are indented, so that none of them can be taken for a detail."""
    lines = []
    for name, value in details.items():
        if name == "error":
            first, *others = printable_lines(str(value)).split("\n")
            lines += [f"{name}: {first}", *(f"    {line}" for line in others)]
        elif name != "data_base64":
            lines.append(f"{name}: {printable(str(value))}")
    return "\n".join(lines)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
