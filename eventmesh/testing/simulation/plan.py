"""What goes wrong in one run: a few faults at exact points, and the pace of each process.

A plan is drawn from a seed and a profile of the run without faults, so that the same seed gives the
same plan. Points are counted: "the 213th step of payments/1" is an await of that worker, "the 40th
call of orders/2" one of its calls to its database or the broker. Because counting is all there is,
a plan is short text, and a part of it can be left out to find what matters:

    7~pace~kill:payments/1:213:1.5~cut:orders/2:40:after~cut:orders/1:3:before:settle

reads: seed 7, calls take times of their own, payments/1 is killed at its 213th step and started
again 1.5 s later, the 40th call of orders/2 is done, but its answer is lost, and orders/1 loses its
connection before its third call to settle messages is done.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from eventmesh.errors import UsageError

Kind = Literal["kill", "pause", "cut", "slow", "outage", "twice", "skew"]

COUNTED_BY: Mapping[Kind, Literal["step", "call", "message"]] = {
    "kill": "step",
    "pause": "step",
    "skew": "step",
    "cut": "call",
    "slow": "call",
    "outage": "call",
    "twice": "message",
}

TELLING_CALLS = frozenset({"COMMIT", "publish", "settle"})
"""Those after which others see what was done: that it was done, and that nobody knows of it, are
what programs forget."""

_MOST_FAULTS = 4
_BEYOND = 1.3
"""How far behind the last point of the profile a fault may be: faults make runs longer."""

_KINDS: Sequence[Kind] = ("kill", "kill", "kill", "pause", "cut", "cut", "slow", "outage", "twice")
_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, fill the unit interval evenly, however many there are."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: at the `number`-th step or call of `process`, or message of all.

    `amount` is in seconds: until a killed worker is started again, for how long one stands still, a
    call takes or a server is away, by how much a clock jumps. `how` is `before` or `after` for a
    call that is cut: before or after it was done. With `call`, such as COMMIT, only calls of this
    kind are counted: a fault that comes with other times meets the same kind of call all the same.
    """

    kind: Kind
    process: str
    number: int
    amount: float = 0.0
    how: str = ""
    call: str = ""

    def __str__(self) -> str:
        rest = self.how or f"{self.amount:g}"
        parts = [self.kind, self.process, str(self.number), rest, *([self.call] * bool(self.call))]
        return ":".join(parts)

    @classmethod
    def parse(cls, text: str) -> Self:
        """UsageError for what is not the text of a fault."""
        try:
            kind, process, number, rest, *calls = text.split(":")
            if kind not in COUNTED_BY or len(calls) > (kind == "cut"):
                raise ValueError(text)
            how = rest if kind == "cut" else ""
            amount = 0.0 if how else float(rest)
            return cls(kind, process, int(number), amount, how, *calls)  # type: ignore[arg-type]  # checked above
        except ValueError:
            raise UsageError(
                f"{text!r} is not a fault: write it as the failed simulation printed it, such as "
                f"kill:payments/1:213:1.5."
            ) from None

    def in_words(self) -> str:
        match self.kind:
            case "kill":
                return f"{self.process} killed, started again after {self.amount:g} s"
            case "pause":
                return f"{self.process} stands still for {self.amount:g} s"
            case "skew":
                return f"the clock of {self.process} jumps by {self.amount:g} s"
            case "cut":
                done = "before it is done" if self.how == "before" else "after it is done"
                what = f"{self.call} number {self.number}" if self.call else "a call"
                return f"{what} of {self.process} loses its connection {done}"
            case "slow":
                return f"a call of {self.process} takes {self.amount:g} s"
            case "outage":
                return f"what {self.process} calls is away for {self.amount:g} s"
            case "twice":
                return "the broker delivers a message twice"


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of one run. With `has_pace`, each process has a speed of its own, and so its
    calls end in another order."""

    seed: int
    has_pace: bool = False
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return "~".join([str(self.seed), *(["pace"] * self.has_pace), *map(str, self.faults)])

    @classmethod
    def parse(cls, text: str) -> Self:
        """UsageError for what is not the text of a plan."""
        seed, *parts = text.split("~")
        if not seed.isdecimal():
            raise UsageError(f"{text!r} is not a plan: it begins with its seed, such as 7~pace.")
        has_pace = "pace" in parts
        return cls(int(seed), has_pace, tuple(map(Fault.parse, (p for p in parts if p != "pace"))))

    def smaller(self) -> list[Plan]:
        """The plans with one part less, those first that leave out most."""
        found = [replace(self, has_pace=False)] if self.has_pace else []
        for number in range(len(self.faults)):
            found.append(replace(self, faults=self.faults[:number] + self.faults[number + 1 :]))
        return found


Point = tuple[str, int]
"""A step or a call of a process: its name, and which one it is."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the run without faults passed: how many steps and calls each process, how many messages;
    for each place in the code, the steps at which processes were there; and for each kind of
    telling call, such as the COMMIT of a service, which of its calls of this kind they were."""

    steps: Mapping[str, int]
    calls: Mapping[str, int]
    messages: int
    places: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    kinds_of_calls: Mapping[str, Sequence[Point]] = field(default_factory=dict)


def draw(seed: int, profile: Profile) -> Plan:
    """The plan of this seed.

    Seed 0 has no fault, and in one of eight others only the order of events differs. The rest begin
    in turn with a kill at a place of the code and with the loss of a call's connection: each place,
    and each kind of call, has its turn. What else goes wrong is drawn by chance.
    """
    chance = random.Random(seed)  # noqa: S311  # not for secrets
    if seed == 0 or not profile.steps:
        return Plan(seed)
    if seed % 8 == 0:
        return Plan(seed, has_pace=True)
    faults = []
    if profile.places and seed % 2:
        _, (process, step) = _turn(seed // 2, profile.places, chance)
        faults.append(Fault("kill", process, step, _restart(chance)))
    elif profile.kinds_of_calls:
        kind, (process, number) = _turn(seed // 4, profile.kinds_of_calls, chance)
        how = "before" if seed % 4 == 2 else "after"
        faults.append(Fault("cut", process, number, 0.0, how, call=kind.rpartition(": ")[2]))
    while len(faults) < _MOST_FAULTS and chance.random() < 0.6:
        faults.append(_draw_fault(chance, profile))
    return Plan(seed, chance.random() < 0.75, tuple(faults))


def _turn(
    turn: int, points: Mapping[str, Sequence[Point]], chance: random.Random
) -> tuple[str, Point]:
    """The kind whose turn it is, and one of its points."""
    kinds = sorted(points)
    kind = kinds[int((turn * _GOLDEN) % 1 * len(kinds))]
    return kind, chance.choice(points[kind])


def _restart(chance: random.Random) -> float:
    return round(chance.choice((0.0, 0.1, 1.0, 10.0)) * (0.5 + chance.random()), 3)


def _draw_fault(chance: random.Random, profile: Profile) -> Fault:
    kind = chance.choice(_KINDS)
    process = chance.choice(sorted(profile.steps))
    counted = {
        "step": profile.steps[process],
        "call": profile.calls.get(process, 0),
        "message": profile.messages,
    }[COUNTED_BY[kind]]
    number = chance.randint(1, max(1, int(counted * _BEYOND)))
    match kind:
        case "kill":
            return Fault(kind, process, number, _restart(chance))
        case "cut":
            return Fault(kind, process, number, how=chance.choice(("before", "after")))
        case "pause":
            return Fault(kind, process, number, round(chance.choice((0.5, 4.0, 40.0)), 3))
        case "slow":
            return Fault(kind, process, number, round(10 ** chance.uniform(-2, 1), 3))
        case "outage":
            return Fault(kind, process, number, round(10 ** chance.uniform(-1, 1), 3))
        case "twice":
            return Fault(kind, "broker", number)
        case "skew":
            return Fault(kind, process, number, round(chance.uniform(-30, 30), 3))
