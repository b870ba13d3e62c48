"""What of messages and sagas is shown: a hook may hide parts of them.

The hook is given a copy of everything that may hold personal data before it is shown. Where the
hook fails, nothing is shown instead of everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import structlog

Mask = Callable[[str, Any], Any]
"""Called with the name of a message or a saga, and what is to be shown of it: its data as parsed
JSON, or a text: a key, a reason, an error, the value of an attribute, or data that is not JSON.
Returns what is shown instead."""

MOST_SHOWN = 64 * 1024
"""Characters of a payload or an error that are shown."""

_FAILED = "hidden, because the mask has failed"


@dataclass(frozen=True, slots=True)
class Shown:
    """A text for the page. `is_masked`: the hook has changed it; `is_cut`: it goes on."""

    text: str
    is_masked: bool = False
    is_cut: bool = False


class Masking:
    def __init__(self, mask: Mask | None) -> None:
        self._mask = mask

    def payload(self, name: str, data: bytes) -> Shown:
        """The data of a message, indented if it is JSON that stays the same by that."""
        text = data.decode("utf-8", errors="backslashreplace")
        inexact: list[str] = []
        repeated: list[dict[str, Any]] = []

        def number(literal: str) -> float:
            value = float(literal)
            if Decimal(literal) != Decimal(repr(value)):
                inexact.append(literal)
            return value

        def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            value = dict(pairs)
            if len(value) < len(pairs):
                repeated.append(value)
            return value

        try:
            parsed = json.loads(text, parse_float=number, object_pairs_hook=named)
        except (ValueError, RecursionError):
            return self.text(name, text)
        shown = self.value(name, parsed, text)
        if not inexact or shown.is_masked:
            return shown
        if repeated and self._mask is not None:
            # The mask saw only the last value of a name that comes twice; the text has them all.
            return replace(shown, is_masked=True)
        return _cut(text, is_masked=False)

    def value(self, name: str, value: Any, exactly: str | None = None) -> Shown:
        """A value as indented JSON. `exactly` is its own text, shown if it cannot be indented."""
        masked, is_masked = self._masked(name, value)
        try:
            shown = json.dumps(masked, indent=2, ensure_ascii=False, default=str)
            return _cut(_visible(shown), is_masked)
        except (ValueError, RecursionError):
            return _cut(_FAILED if is_masked or exactly is None else exactly, is_masked)

    def text(self, name: str, text: str) -> Shown:
        """An error, or data that is not JSON."""
        masked, is_masked = self._masked(name, text)
        return _cut(str(masked), is_masked)

    def line(self, name: str | None, text: str | None) -> str | None:
        """A key, a reason or the last line of an error, as a list shows it."""
        return None if text is None else self.text(name or "", text).text

    def _masked(self, name: str, value: Any) -> tuple[Any, bool]:
        if self._mask is None:
            return value, False
        try:
            masked = self._mask(name, json.loads(json.dumps(value)))
        except Exception:  # noqa: BLE001  # a user's function may raise anything
            structlog.get_logger("eventmesh.dashboard").exception("mask failed", message=name)
            return _FAILED, True
        return masked, masked != value


def _visible(text: str) -> str:
    """The same JSON, with characters that cannot be seen as escapes of JSON."""
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )


def _cut(text: str, is_masked: bool) -> Shown:
    if len(text) <= MOST_SHOWN:
        return Shown(text, is_masked)
    return Shown(text[:MOST_SHOWN], is_masked, is_cut=True)
