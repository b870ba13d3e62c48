"""Text from users' code, such as an error's, made storable for every broker and every database.

PostgreSQL stores no NUL in a text, and nothing that is UTF-8 holds a lone surrogate, as odd file
names contain them. Both are written as escapes, so that a text which only tells why something
failed cannot make another thing fail.
"""

from __future__ import annotations


def storable(text: str) -> str:
    """The text, with NUL and lone surrogates as escapes: `\\x00` and `\\ud800`."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
