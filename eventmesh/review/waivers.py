"""Waivers: a person accepts one finding, for a reason and until a day, in `pyproject.toml`:

[[tool.eventmesh.waivers]]
fingerprint = "0123456789abcdef"
reason = "the only reader is being shut down"
expires = 2026-12-31
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from eventmesh.contracts.problem import Place, Problem
from eventmesh.errors import UsageError

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_KEYS = {"fingerprint", "reason", "expires"}


@dataclass(frozen=True, slots=True)
class Waiver:
    """What the project says of the problem with this fingerprint."""

    fingerprint: str
    reason: str
    expires: date | None
    place: Place

    @property
    def lacks(self) -> str:
        """What it needs to count, and has not; empty when it is whole."""
        missing = ["a reason"] if not self.reason.strip() else []
        missing += ["a day on which it expires"] if self.expires is None else []
        return " and ".join(missing)

    def counts(self, today: date) -> bool:
        """Whether it silences anything: it is whole, and not past its last day."""
        return not self.lacks and self.expires is not None and self.expires >= today

    def incomplete(self) -> Problem:
        """EM060: it is not whole."""
        return Problem(
            "EM060",
            "error",
            f"waiver {self.fingerprint}",
            f"The waiver silences nothing: it has not {self.lacks.replace(' and ', ', and not ')}.",
            'Write reason = "…", a sentence that says why, and expires = 2026-12-31, a day without '
            "quotes, or remove the waiver.",
            place=self.place,
        )

    def unused(self) -> Problem:
        """EM061: nothing that was found has this fingerprint."""
        return Problem(
            "EM061",
            "warning",
            f"waiver {self.fingerprint}",
            f"The waiver ({self.reason or 'without a reason'}) is for nothing that was found.",
            "Remove it from pyproject.toml.",
            place=self.place,
        )


def read_waivers(path: Path) -> list[Waiver]:
    """The waivers of a `pyproject.toml`, none if there is no such file; UsageError naming the
    entry that cannot be understood."""
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = tomllib.loads(text)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    for table in ("tool", "eventmesh", "waivers"):
        content = content.get(table, {}) if isinstance(content, dict) else None
    if content == {}:
        return []
    if not isinstance(content, list):
        raise UsageError(
            f"{path}: waivers are written as [[tool.eventmesh.waivers]], with double brackets, and "
            f"below it the lines fingerprint, reason and expires."
        )
    waivers = [_waiver(entry, path, text) for entry in content]
    _refuse_doubles(waivers, path)
    return waivers


def _waiver(entry: Any, path: Path, text: str) -> Waiver:
    if not isinstance(entry, dict):
        raise _wrong(path, entry, "it is not a table")
    if strange := sorted(entry.keys() - _KEYS):
        raise _wrong(path, entry, f"{strange[0]!r} means nothing there")
    fingerprint, reason = entry.get("fingerprint"), entry.get("reason", "")
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise _wrong(path, entry, "its fingerprint is not the 16 digits that a check prints")
    if not isinstance(reason, str):
        raise _wrong(path, entry, "its reason is not a text")
    expires = entry.get("expires")
    if isinstance(expires, datetime):
        expires = expires.date()
    if expires is not None and not isinstance(expires, date):
        raise _wrong(path, entry, "it expires on no day: write expires = 2026-12-31, unquoted")
    return Waiver(fingerprint, reason, expires, Place(str(path.name), _line(text, fingerprint)))


def _wrong(path: Path, entry: Any, why: str) -> UsageError:
    lines = entry.items() if isinstance(entry, dict) else [("entry", entry)]
    shown = ", ".join(f"{key} = {value}" for key, value in lines) or "nothing in it"
    return UsageError(
        f"{path}: the entry of [[tool.eventmesh.waivers]] with {shown} cannot be used: {why}."
    )


def _refuse_doubles(waivers: Sequence[Waiver], path: Path) -> None:
    seen: set[str] = set()
    for waiver in waivers:
        if waiver.fingerprint in seen:
            raise UsageError(
                f"{path} has two waivers with the fingerprint {waiver.fingerprint}: keep one."
            )
        seen.add(waiver.fingerprint)


def _line(text: str, fingerprint: str) -> int:
    before, found, _ = text.partition(fingerprint)
    return before.count("\n") + 1 if found else 1
