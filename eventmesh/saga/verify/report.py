"""What was proved of a saga, what was not, and why: for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from eventmesh.saga.definition import Definition
from eventmesh.saga.verify.exploration import SAGA_IS, Bounds, Broken, Explored, explore
from eventmesh.saga.verify.moves import Move
from eventmesh.saga.verify.properties import PROPERTIES
from eventmesh.saga.verify.rules import Rules
from eventmesh.saga.verify.story import in_short, in_words, mermaid, scenes
from eventmesh.saga.verify.twin import ATTEMPTS


@dataclass(frozen=True)
class Report:
    """The verdict on one saga."""

    definition: Definition
    bounds: Bounds
    rules: Rules
    found: Explored

    @property
    def passed(self) -> bool:
        """Whether all properties hold, and everything in the saga can happen."""
        return self.found.broken is None and not self.unreached

    @property
    def wanted(self) -> list[str]:
        """What must happen sometimes: every step, every undo, both endings."""
        names: list[str] = []
        for step in self.definition.steps.values():
            names.append(step.name)
            if step.undoing is not None:
                names.append(f"{step.name}:undo")
        return [*names, f"{SAGA_IS}completed", f"{SAGA_IS}undone"]

    @property
    def unreached(self) -> list[str]:
        """What has not happened in any story; where a property is broken, nobody has looked on."""
        if self.found.broken is not None:
            return []
        return [name for name in self.wanted if name not in self.found.witnesses]

    @property
    def never_times_out(self) -> list[str]:
        """The steps whose author has written `timeout=None`."""
        return [step.name for step in self.definition.steps.values() if step.timeout is None]

    @property
    def answered_alike(self) -> list[tuple[str, str, str]]:
        """Steps one after another that the same event answers by its key: a second one that comes
        before the later step has begun is kept for it, also where the first was just sent twice."""
        steps = list(self.definition.steps.values())
        return [
            (one.name, other.name, one.ok.__name__)
            for one, other in combinations(steps, 2)
            if one.correlate and other.correlate and one.ok in (other.ok, *other.failed)
        ]

    def told(self, story: Sequence[Move]) -> list[str]:
        """A story in words."""
        return in_words(scenes(self.found.twin, self.rules, story))

    def lines(self) -> Iterator[str]:
        """The report for people."""
        found, definition = self.found, self.definition
        steps = len(definition.steps)
        yield (
            f"{definition.name} v{definition.version}: {steps} step{'s' * (steps != 1)}, "
            f"{found.worlds:,} states, {found.transitions:,} transitions"
        )
        if found.broken is not None:
            yield from self._failure(found.broken)
            return
        yield f"  {self._scope()}"
        for name in self.never_times_out:
            yield f"  note       {name} waits for ever if nobody answers: timeout=None"
        for one, other, event in self.answered_alike:
            yield (
                f"  note       {event} answers {one} and then {other}: if it is published twice "
                f"for {one}, the second one answers {other}; use two events"
            )
        for each in PROPERTIES:
            yield f"  always     {each.name}: {each.sentence}"
        for name in self.wanted:
            if name in self.unreached:
                yield f"  never      {name}: FAILED, no story reaches it{self._within()}"
            else:
                yield f"  sometimes  {name}: {in_short(found.witnesses[name])}"

    def _failure(self, broken: Broken) -> Iterator[str]:
        found = self.found
        yield f"  FAILED {broken.name}: {broken.problem}"
        yield f"  It must hold that {broken.sentence}. The shortest story:"
        for number, sentence in enumerate(self.told(broken.story), 1):
            yield f"  {number:>3}. {sentence}"
        yield ""
        yield "```mermaid"
        yield mermaid(scenes(found.twin, self.rules, broken.story))
        yield "```"

    def _scope(self) -> str:
        found = self.found
        operator, function = map(
            _times, (self.bounds.operator_actions, self.bounds.function_errors)
        )
        limits = (
            f"retry= sends a command {_times(ATTEMPTS)}, an operator acts {operator}, a function "
            f"of the saga fails {function}"
        )
        if found.complete_up_to is None:
            return f"explored   all stories; {limits}"
        if found.complete_up_to < 0:
            return f"explored   a part of the stories without a deviation, up to {found.hit}"
        option = "--states" if found.hit.endswith("states") else "--deviations"
        return (
            f"explored   all stories with up to {found.complete_up_to} deviations, and not all "
            f"with more: the bound of {found.hit} was met, which {option} moves; {limits}"
        )

    def _within(self) -> str:
        return "" if self.found.complete_up_to is None else " within these bounds"

    def to_jsonable(self) -> dict[str, Any]:
        """The report for programs."""
        found, broken = self.found, self.found.broken
        return {
            "saga": self.definition.name,
            "version": self.definition.version,
            "passed": self.passed,
            "steps": len(self.definition.steps),
            "states": found.worlds,
            "transitions": found.transitions,
            "bounds": {
                "states": self.bounds.worlds,
                "deviations": self.bounds.deviations,
                "operator_actions": self.bounds.operator_actions,
                "function_errors": self.bounds.function_errors,
                "attempts": ATTEMPTS,
                "hit": found.hit or None,
            },
            "complete": found.complete_up_to is None and broken is None,
            "explored_deviations": found.complete_up_to,
            "properties": [{"name": each.name, "sentence": each.sentence} for each in PROPERTIES],
            "witnesses": {name: self.told(story) for name, story in found.witnesses.items()},
            "unreached": self.unreached,
            "never_times_out": self.never_times_out,
            "answered_alike": [
                {"steps": [one, other], "event": event} for one, other, event in self.answered_alike
            ],
            "broken": None
            if broken is None
            else {
                "property": broken.name,
                "problem": broken.problem,
                "story": self.told(broken.story),
                "mermaid": mermaid(scenes(found.twin, self.rules, broken.story)),
            },
        }


def verify(
    definition: Definition, bounds: Bounds | None = None, rules: Rules | None = None
) -> Report:
    """Explore a saga, and say what was proved of it."""
    bounds, rules = bounds or Bounds(), rules or Rules()
    return Report(definition, bounds, rules, explore(definition, bounds, rules))


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
