from __future__ import annotations

import pytest

from eventmesh.error_text import message_of, type_and_message


class Unspeakable(Exception):
    """An error that cannot be shown, because of a mistake in the user's class."""

    def __repr__(self) -> str:
        raise AttributeError("nope")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("no\nluck"), "ValueError: no\nluck"),
        (KeyError("id"), "KeyError: 'id'"),
        (ValueError(), "ValueError"),
        (SyntaxError("odd", ("a.py", 1, 1, "x =")), "SyntaxError: odd"),
    ],
)
def test_an_error_is_shown_in_one_line_by_its_type_and_message(
    error: Exception, shown: str
) -> None:
    assert type_and_message(error) == shown


def test_an_error_that_cannot_be_shown_is_named_all_the_same() -> None:
    assert type_and_message(Unspeakable("x")).endswith("Unspeakable: <exception str() failed>")
    assert message_of(Unspeakable("x")) == "<exception str() failed>"
