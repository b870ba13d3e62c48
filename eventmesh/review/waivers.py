"""Waivers: accepting one finding of a check, with a reason and an expiry date.

They are written in `pyproject.toml`. The check prints the fingerprint of each finding; it stays the
same as long as the finding is about the same thing.

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
    """One entry: the project accepts the problem with this fingerprint."""

    fingerprint: str
    reason: str
    expires: date | None
    place: Place

    @property
    def missing(self) -> str:
        """The required parts that it does not have; empty for a complete waiver."""
        missing = ["a reason"] if not self.reason.strip() else []
        missing += ["an expiry date"] if self.expires is None else []
        return " and ".join(missing)

    def is_active(self, today: date) -> bool:
        """Whether it has an effect: it is complete, and not past its expiry date."""
        return not self.missing and self.expires is not None and self.expires >= today

    def incomplete(self) -> Problem:
        """EM060: the waiver lacks its reason or its expiry date."""
        return Problem(
            "EM060",
            "error",
            f"waiver {self.fingerprint}",
            f"The waiver has no effect: it lacks {self.missing}.",
            'Write reason = "…", a sentence that says why, and expires = 2026-12-31, without '
            "quotes; or remove the waiver.",
            place=self.place,
        )

    def unused(self) -> Problem:
        """EM061: no finding has this fingerprint."""
        return Problem(
            "EM061",
            "warning",
            f"waiver {self.fingerprint}",
            f"The waiver ({self.reason or 'without a reason'}) matches no finding.",
            "Remove it from pyproject.toml.",
            place=self.place,
        )


def read_waivers(path: Path) -> list[Waiver]:
    """The waivers in a `pyproject.toml`, which need not exist.

    UsageError that shows the entry if one is not valid.
    """
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
            f"{path}: write each waiver as [[tool.eventmesh.waivers]], with double brackets, and "
            f"below it the lines fingerprint, reason and expires."
        )
    waivers = [_waiver(entry, path, text) for entry in content]
    _reject_duplicates(waivers, path)
    return waivers


def _waiver(entry: Any, path: Path, text: str) -> Waiver:
    if not isinstance(entry, dict):
        raise _wrong(path, entry, "it must be a table")
    if strange := sorted(entry.keys() - _KEYS):
        raise _wrong(path, entry, f"{strange[0]!r} is not a key of a waiver")
    fingerprint, reason = entry.get("fingerprint"), entry.get("reason", "")
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise _wrong(path, entry, "fingerprint must be 16 digits as the check prints them")
    if not isinstance(reason, str):
        raise _wrong(path, entry, "reason must be a string")
    expires = entry.get("expires")
    if isinstance(expires, datetime):
        expires = expires.date()
    if expires is not None and not isinstance(expires, date):
        raise _wrong(path, entry, "expires must be a date without quotes, such as 2026-12-31")
    return Waiver(fingerprint, reason, expires, Place(str(path.name), _line(text, fingerprint)))


def _wrong(path: Path, entry: Any, why: str) -> UsageError:
    lines = entry.items() if isinstance(entry, dict) else [("entry", entry)]
    shown = ", ".join(f"{key} = {value}" for key, value in lines) or "no content"
    return UsageError(
        f"{path}: the entry of [[tool.eventmesh.waivers]] with {shown} is not valid: {why}."
    )


def _reject_duplicates(waivers: Sequence[Waiver], path: Path) -> None:
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
