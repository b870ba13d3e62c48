"""What happened in a mesh, as a sequence diagram in text.

Each participant has a line that goes down, time goes down, and a message is an arrow from the
service that published it to the one that handled it:

       time  test              orders            payments
      0.000  ├─OrderPlaced #1──▶                 │
      0.004  │                 ├─CapturePayment #2─▶
      0.004  │                 │                 ✝ killed

Messages are numbered in the order in which they were first published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Mark = Literal["published", "handled", "retried", "dead", "lost", "note", "fault"]

_MARKS = {"handled": "", "retried": " ↻", "dead": " ✗", "lost": " (again)", "published": " ?"}
_TIME_WIDTH = 12
_LANE_WIDTH = 26
_MOST_LINES = 400


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened at a time, in seconds: a message that went from `origin` to `where`,
    or, without an origin, a note about `where`."""

    at: float
    mark: Mark
    where: str
    text: str
    origin: str = ""


class Story:
    """Collects what happens."""

    def __init__(self) -> None:
        self.happenings: list[Happening] = []
        self._numbers: dict[str, int] = {}

    def number(self, message_id: str) -> int:
        """The number of a message, which it gets here when it is first named."""
        return self._numbers.setdefault(message_id, len(self._numbers) + 1)

    def add(self, at: float, mark: Mark, where: str, text: str, origin: str = "") -> None:
        self.happenings.append(Happening(at, mark, where, text, origin))


def draw(happenings: Sequence[Happening]) -> str:
    """The sequence diagram; the first and last lines of one that is very long."""
    shown = _without_repetition(happenings)
    left_out = len(shown) - _MOST_LINES
    lanes = {
        name: number
        for number, name in enumerate(
            dict.fromkeys(name for each in shown for name in (each.origin, each.where) if name)
        )
    }
    if not lanes:
        return "nothing happened"
    lines = [_heading(lanes)]
    if left_out > 0:
        half = _MOST_LINES // 2
        lines += [_line(each, lanes) for each in shown[:half]]
        lines.append(f"{'':{_TIME_WIDTH}}… {left_out} lines left out …")
        shown = shown[-half:]
    lines += [_line(each, lanes) for each in shown]
    return "\n".join(line.rstrip() for line in lines)


def _without_repetition(happenings: Sequence[Happening]) -> list[Happening]:
    """Notes once where they are repeated, such as that a server is away, with how often."""
    notes = Counter((each.where, each.text) for each in happenings if not each.origin)
    found = dict.fromkeys(notes, False)
    shown = []
    for each in happenings:
        note = each.where, each.text
        if each.origin or notes[note] == 1:
            shown.append(each)
        elif not found[note]:
            found[note] = True
            shown.append(replace(each, text=f"{each.text} ({notes[note]} times)"))
    return shown


def _heading(lanes: Iterable[str]) -> str:
    return f"{'time':>{_TIME_WIDTH - 2}}  " + "".join(f"{name:{_LANE_WIDTH}}" for name in lanes)


def _line(each: Happening, lanes: dict[str, int]) -> str:
    width = len(lanes) * _LANE_WIDTH
    row = [" "] * width
    for number in lanes.values():
        row[number * _LANE_WIDTH] = "│"
    end = lanes[each.where] * _LANE_WIDTH
    text = f"{each.text}{_MARKS.get(each.mark, '')}"
    if not each.origin:
        sign = "✖" if each.mark == "fault" else "•"
        row[end : end + 2 + len(text)] = [sign, " ", *text]
    elif each.origin == each.where:
        row[end : end + 3 + len(text)] = ["├", "↺", " ", *text]
    else:
        start = lanes[each.origin] * _LANE_WIDTH
        low, high = min(start, end), max(start, end)
        row[low + 1 : high] = ["─"] * (high - low - 1)
        room = high - low - 3
        label = text if len(text) <= room else f"{text[: room - 1]}…"
        row[low + 2 : low + 2 + len(label)] = label
        row[start] = "├" if start < end else "┤"
        row[end] = "▶" if start < end else "◀"
    return f"{each.at:>{_TIME_WIDTH - 2},.3f}  " + "".join(row)
