"""Text from messages and errors, made safe for a terminal.

Control characters, line separators and characters that change the direction of text are replaced
by escapes, so that a message cannot erase the screen or add a line to a table.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def printable_lines(text: str) -> str:
    """The text with its line breaks kept, such as a traceback."""
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
