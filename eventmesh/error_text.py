"""What an error says, for a reason or another error that quotes it.

An error of a user's class may fail when it is shown: its `__repr__` or `__str__` reads an attribute
that it lacks. Whoever quotes it must not fail for that, least of all a worker on its way to a dead
letter.
"""

from __future__ import annotations

import traceback


def type_and_message(error: BaseException) -> str:
    """`ValueError: no such order`, also of an error that cannot be shown."""
    lines = traceback.format_exception_only(error)
    # Notes come after the message; what a SyntaxError shows of the source comes before it.
    return lines[-1 if isinstance(error, SyntaxError) else 0].strip()


def message_of(error: BaseException) -> str:
    """`str(error)`, also of an error that cannot be shown."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # a user's class may raise anything
        return "<exception str() failed>"
