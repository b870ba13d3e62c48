"""Visits every world of a saga, those with few deviations first.

A *deviation* is a step away from a run in which every command is answered once and in time: a
time-out, an answer that takes longer than one, a duplicate, a dead letter and its replay, an
operator's action, a step that is skipped. Refusals are free. All worlds with n deviations are
visited before any with n + 1, so a story that ends badly is told with as few as possible. Where the
bound on the number of worlds is met, the exploration can say what was proved: everything with up to
n - 1 deviations.

Two reductions leave out moves that lead nowhere new:

- A message that changes nothing when it comes is taken at once, before anything else: had it come
  later and changed something, its second copy does the same then.
- Second copies are tried in every world, but are remembered only where they have changed something.
  Whether one does depends on its unit and on the status of the saga, which is looked up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from eventmesh.errors import UsageError
from eventmesh.saga.definition import Definition
from eventmesh.saga.happening import UnexpectedAnswer, UnknownStep
from eventmesh.saga.record import SagaRecord
from eventmesh.saga.verify.keys import Key, Keys
from eventmesh.saga.verify.moves import (
    AGAIN,
    ARRIVALS,
    Made,
    Move,
    Moves,
    begin,
    changes,
    make,
)
from eventmesh.saga.verify.properties import (
    ANSWERS_ARE_TAKEN,
    NO_ERROR,
    PROPERTIES,
    RETRY_GOES_ON,
    UNDONE_ONLY_WHAT_WAS_DONE,
    Happened,
    Property,
    waits_for_ever,
)
from eventmesh.saga.verify.rules import RememberedRules, Rules, TransitionFailed
from eventmesh.saga.verify.twin import CalledWithoutReply, Twin, TwinState, Undecided, twin_of
from eventmesh.saga.verify.world import World, label_of

SAGA_IS = "saga "
"""What the status of a saga follows in the name of a witness: a step may be called `completed`."""

OF_MOVES = tuple(each for each in PROPERTIES if not each.of_worlds)


@dataclass(frozen=True)
class Bounds:
    """How far the exploration goes."""

    worlds: int = 80_000
    """How many different worlds it visits at most."""
    operator_actions: int = 1
    """How often an operator acts in one story."""
    function_errors: int = 1
    """How often a function of the saga's author fails in one story."""
    deviations: int | None = None
    """How many deviations a story has at most; None: any number."""


@dataclass(frozen=True)
class Reductions:
    """What is left out; all of it can be turned off, to check that nothing is lost."""

    symmetry: bool = True
    at_once: bool = True
    """Messages that change nothing are taken before all others."""
    remembered: bool = True
    """Whether a second copy changes nothing is looked up."""


class Node(NamedTuple):
    """How a world was reached: the node before it, and the move."""

    parent: int
    move: Move


class Place(NamedTuple):
    """A world, the number of its node, its deviations, and the numbers that make its key."""

    world: World
    node: int
    deviations: int
    numbers: Sequence[int]


@dataclass(frozen=True)
class Broken:
    """A property that does not hold: what is wrong, after these moves."""

    name: str
    sentence: str
    problem: str
    story: tuple[Move, ...]


@dataclass
class Explored:
    """What was found."""

    twin: Twin
    worlds: int = 0
    transitions: int = 0
    complete_up_to: int | None = None
    """All stories with up to this many deviations were visited; None: all there are."""
    hit: str = ""
    """The bound that was met, for people."""
    witnesses: dict[str, tuple[Move, ...]] = field(default_factory=dict)
    """The shortest story for each thing that must happen sometimes: `reserve`, `reserve:undo`,
    `saga completed` and so on."""
    outcomes: set[tuple[str, ...]] = field(default_factory=set)
    """Where nothing is under way: the status of the saga and those of its units, sorted."""
    waits_for_ever: set[str] = field(default_factory=set)
    broken: Broken | None = None


def explore(
    definition: Definition,
    bounds: Bounds | None = None,
    rules: Rules | None = None,
    reductions: Reductions | None = None,
) -> Explored:
    """Visit the worlds of this saga until one breaks a property, or a bound is met."""
    return _Exploration(
        twin_of(definition), bounds or Bounds(), rules or Rules(), reductions or Reductions()
    ).run()


class _Exploration:
    def __init__(self, twin: Twin, bounds: Bounds, rules: Rules, reductions: Reductions) -> None:
        self.twin = twin
        self.bounds = bounds
        self.rules = RememberedRules(rules, twin.definition)
        self.moves = Moves(twin, bounds.operator_actions)
        self.reductions = reductions
        self.keys = Keys(twin, reductions.symmetry)
        self.found = Explored(twin)
        self.nodes: list[Node] = []
        self.seen: set[Key] = set()
        self.new: deque[Place] = deque()
        self.later: list[list[tuple[Place, Sequence[Move]]]] = []
        self.inert: set[tuple[str, str, int, int]] = set()
        self.waits = [step.name for step in twin.definition.steps.values() if step.command is None]

    def run(self) -> Explored:
        self._start()
        deviations = 0
        while self._is_going_on and deviations < len(self.later):
            if self.bounds.deviations is not None and deviations > self.bounds.deviations:
                self._hit(f"{self.bounds.deviations} deviations", deviations - 1)
                break
            for place, moves in self.later[deviations]:
                for move in moves:
                    self._try(place, move, deviations)
                    self._visit_new(deviations)
                if not self._is_going_on:
                    break
            self.later[deviations].clear()
            deviations += 1
        self._complete_witnesses()
        return self.found

    def _complete_witnesses(self) -> None:
        """What one branch can do, the others of the same form can do, too: only one was visited."""
        witnesses = self.found.witnesses
        swaps = list(self.keys.swaps())
        pending = list(witnesses)
        while pending:
            name = pending.pop()
            for swap in swaps:
                other = name if name.startswith(SAGA_IS) else _renamed(name, swap)
                if other not in witnesses:
                    story = witnesses[name]
                    witnesses[other] = tuple(_renamed_move(move, swap) for move in story)
                    pending.append(other)

    @property
    def _is_going_on(self) -> bool:
        return self.found.broken is None and not self.found.hit

    def _hit(self, bound: str, complete_up_to: int) -> None:
        self.found.hit, self.found.complete_up_to = bound, complete_up_to

    def _visit_new(self, deviations: int) -> None:
        """Visit what was found with this number of deviations, and all that follows without any
        more of them."""
        while self.new and self._is_going_on:
            if self.found.worlds == self.bounds.worlds:
                self._hit(f"{self.bounds.worlds:,} states", deviations - 1)
                return
            self.found.worlds += 1
            self._visit(self.new.popleft())

    def _start(self) -> None:
        nowhere = World(SagaRecord("running", TwinState()), {})
        self._put_off(Place(nowhere, -1, 0, self.keys.all_numbers(nowhere)), (Move("started"),), 0)

    def _put_off(self, place: Place, moves: Sequence[Move], deviations: int) -> None:
        """Try these moves when all stories with fewer deviations have been told."""
        while len(self.later) <= deviations:
            self.later.append([])
        self.later[deviations].append((place, moves))

    def _visit(self, place: Place) -> None:
        moves = self.moves.of(place.world)
        if place.world.record.status == "cancelled":
            self._check_that_it_stays(place, moves)
            return
        if self.reductions.at_once:
            for move in moves:
                if move.kind in ARRIVALS:
                    made = self._make(place, move, place.deviations)
                    if made is not None and _is_inert(made):
                        self._take(place, move, made, place.deviations)
                        return
        later: dict[int, list[Move]] = {}
        whole = self.keys.whole(place.world)
        for move in moves:
            if move.deviations == 0:
                self._try(place, move, place.deviations)
            elif move.kind not in AGAIN or not self._is_known_to_be_inert(place, move, whole):
                later.setdefault(move.deviations, []).append(move)
        for more, put_off in later.items():
            self._put_off(place, put_off, place.deviations + more)

    def _check_that_it_stays(self, place: Place, moves: Sequence[Move]) -> None:
        """Whatever still comes changes nothing, so no world follows this one."""
        for move in moves:
            made = self._make(place, move, place.deviations)
            if made is not None and not _is_inert(made):
                happened = Happened(self.twin, place.world, move, made.world, made.transition)
                self._check(happened, place.node)

    def _try(self, place: Place, move: Move, deviations: int) -> None:
        made = self._make(place, move, deviations)
        if made is None:
            return
        if move.kind in AGAIN and _is_inert(made):
            self.inert.add(self._inert_key(place, move, self.keys.whole(place.world)))
            return
        self._take(place, move, made, deviations)
        if self._may_fail(place, move, made):
            self._put_off(place, (move._replace(is_failing=True),), deviations + 1)

    def _may_fail(self, place: Place, move: Move, made: Made) -> bool:
        """Whether this move calls a function of the author."""
        transition = made.transition
        if (
            move.is_failing
            or place.world.function_errors >= self.bounds.function_errors
            or transition is None
        ):
            return False
        return bool(transition.sendings) or transition.ending is not None

    def _make(self, place: Place, move: Move, deviations: int) -> Made | None:
        """What this move makes of a world; None where an operator cannot do it, where it needs a
        choice, which is tried by itself, or where the transition fails."""
        node = place.node
        self.found.transitions += 1
        try:
            if move.kind == "started":
                return begin(self.rules, self.twin, move)
            return make(self.rules, self.twin, place.world, move)
        except Undecided as undecided:
            for number, option in enumerate(undecided.options):
                choices = (*move.choices, (undecided.step, option))
                extra = int(number > 0)  # the first option is the usual one
                self._put_off(place, (move._replace(choices=choices),), deviations + extra)
        except (UnexpectedAnswer, UnknownStep) as error:
            self._break(ANSWERS_ARE_TAKEN, f"{type(error).__name__}: {error}", node, move)
        except CalledWithoutReply:
            problem = "an undo that needs the reply of its step is called without one"
            self._break(UNDONE_ONLY_WHAT_WAS_DONE, problem, node, move)
        except UsageError as error:
            if move.kind != "operator":
                self._break(NO_ERROR, str(error), node, move)
            elif move.detail == "retry" and place.world.record.parking is not None:
                self._break(RETRY_GOES_ON, f"it is not possible: {error}", node, move)
        except TransitionFailed as error:
            self._break(NO_ERROR, str(error), node, move)
        return None

    def _take(self, place: Place, move: Move, made: Made, deviations: int) -> None:
        """Check what has happened, and visit the world later if it is new."""
        world = made.world
        numbers = self.keys.numbers(world, place.world, place.numbers)
        key = self.keys.key(world, numbers)
        is_new = key not in self.seen
        happened = Happened(self.twin, place.world, move, world, made.transition)
        if not self._check(happened, place.node, of_worlds=is_new):
            return
        self._witness(happened, place.node)
        if is_new:
            self.seen.add(key)
            self.nodes.append(Node(place.node, move))
            self.new.append(Place(world, len(self.nodes) - 1, deviations, numbers))
            if world.is_quiescent:
                self._note_outcome(world.record)

    def _check(self, happened: Happened, parent: int, *, of_worlds: bool = True) -> bool:
        for each in PROPERTIES if of_worlds else OF_MOVES:
            problem = each.broken(happened)
            if problem is not None:
                self._break(each, problem, parent, happened.move)
                return False
        return True

    def _witness(self, happened: Happened, parent: int) -> None:
        """Remember the first story in which something happens; it has the fewest deviations."""
        transition, record = happened.transition, happened.after.record
        names = [] if transition is None else [base_of(each.label) for each in transition.sendings]
        names += [name for name in self.waits if name in record.units]
        if record.status not in ("running", "undoing"):
            names.append(f"{SAGA_IS}{record.status}")
        for name in names:
            if name not in self.found.witnesses:
                self.found.witnesses[name] = self._story(parent, happened.move)

    def _note_outcome(self, record: SagaRecord) -> None:
        statuses = sorted(unit.status for unit in record.units.values())
        self.found.outcomes.add((record.status, *statuses))
        self.found.waits_for_ever.update(waits_for_ever(self.twin, record))

    def _is_known_to_be_inert(self, place: Place, move: Move, whole: int) -> bool:
        return self.reductions.remembered and self._inert_key(place, move, whole) in self.inert

    def _inert_key(self, place: Place, move: Move, whole: int) -> tuple[str, str, int, int]:
        unit = label_of(move.subject).unit
        number = self.keys.number_of(unit, place.world, place.numbers)
        return move.kind, move.subject, number, whole

    def _break(self, prop: Property, problem: str, parent: int, move: Move) -> None:
        self.found.broken = Broken(prop.name, prop.sentence, problem, self._story(parent, move))

    def _story(self, node: int, last: Move) -> tuple[Move, ...]:
        story = [last]
        while node >= 0:
            node, move = self.nodes[node]
            story.append(move)
        return tuple(reversed(story))


def _is_inert(made: Made) -> bool:
    """Whether the saga has heard of nothing, or of nothing that matters."""
    return made.transition is None or not changes(made.transition)


def _renamed(label: str, swap: Mapping[str, str]) -> str:
    found = label_of(label)
    return str(replace(found, step=swap.get(found.step, found.step)))


def _renamed_move(move: Move, swap: Mapping[str, str]) -> Move:
    choices = tuple((swap.get(step, step), number) for step, number in move.choices)
    subject = _renamed(move.subject, swap) if move.subject else ""
    return move._replace(subject=subject, choices=choices)


def base_of(label: str) -> str:
    """A step, or its undo, without its item and attempt."""
    found = label_of(label)
    return found.step + (":undo" if found.is_undo else "")
