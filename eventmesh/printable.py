"""What others wrote, as a terminal may show it: control characters, line separators and characters
that change the direction of text are shown as escapes, so that nobody's message erases the screen
or adds a line of its own to a table."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def printable_lines(text: str) -> str:
    """The same of a text whose lines are meant to be lines, such as a traceback."""
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
