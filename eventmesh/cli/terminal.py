"""What may be written to a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text without what could command a terminal: whoever wrote it is not to be trusted."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
