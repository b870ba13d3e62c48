"""A story, which is a list of moves, in words and as a Mermaid sequence diagram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eventmesh.errors import EventMeshError
from eventmesh.saga.draft import Transition
from eventmesh.saga.record import SagaRecord
from eventmesh.saga.verify.moves import Move, begin, make
from eventmesh.saga.verify.rules import RememberedRules, Rules
from eventmesh.saga.verify.twin import CalledWithoutReply, Twin
from eventmesh.saga.verify.world import World, label_of


@dataclass(frozen=True, slots=True)
class Scene:
    """A move, and what the saga does upon it; None where it does not hear of it, or fails."""

    move: Move
    before: SagaRecord | None
    transition: Transition | None


def scenes(twin: Twin, rules: Rules, story: Sequence[Move]) -> list[Scene]:
    """The moves once more, with what the saga does upon each."""
    remembered = RememberedRules(rules, twin.definition)
    found: list[Scene] = []
    world: World | None = None
    for move in story:
        before = None if world is None else world.record
        try:
            if world is None:
                made = begin(remembered, twin, move)
            else:
                made = make(remembered, twin, world, move)
        except (EventMeshError, CalledWithoutReply):  # the end of a story that ends badly
            found.append(Scene(move, before, None))
            break
        found.append(Scene(move, before, made.transition))
        world = made.world
    return found


def in_words(story: Sequence[Scene]) -> list[str]:
    """One sentence for each move."""
    return [_sentence(scene) for scene in story]


def in_short(story: Sequence[Move]) -> str:
    """The moves alone, on one line."""
    return "; ".join(_what_happens(move) for move in story)


def spoken(label: str) -> str:
    """A label for people: `reserve`, `the undo of reserve`, `reserve, attempt 2`."""
    found = label_of(label)
    what = f"the undo of {found.unit}" if found.is_undo else found.unit
    return what if found.attempt == 1 else f"{what}, attempt {found.attempt}"


def _sentence(scene: Scene) -> str:
    consequences = [*_consequences(scene)]
    what = _what_happens(scene.move)
    if scene.move.is_failing:
        what += ", and a function of the saga fails"
    return what + (f": {', '.join(consequences)}" if consequences else "")


def _what_happens(move: Move) -> str:
    subject, answer = move.subject, "ok" if move.detail == "ok" else "a refusal"
    skipped = "".join(f"; {text}" for text in _choices(move))
    match move.kind:
        case "started":
            return f"The saga starts{skipped}"
        case "answered":
            return f"{_outcome(move)}{skipped}"
        case "handled":
            return f"{_outcome(move)}; its answer is under way"
        case "delivered":
            return f"The answer to {spoken(subject)} arrives ({answer}){skipped}"
        case "dead_lettered":
            return f"{_capital(spoken(subject))} is dead-lettered"
        case "buried":
            return f"{_capital(spoken(subject))} is dead-lettered; the saga is going to hear of it"
        case "told":
            return f"The saga hears that {spoken(subject)} was dead-lettered"
        case "replayed":
            return f"The dead letter of {spoken(subject)} is replayed"
        case "timed_out":
            return f"{_capital(spoken(subject))} times out"
        case "answered_again":
            return f"The answer to {spoken(subject)} arrives a second time ({answer})"
        case "timed_out_again":
            return f"A second or cancelled time-out of {spoken(subject)} arrives"
        case "told_again":
            return f"The saga hears a second time that {spoken(subject)} was dead-lettered"
        case "decided":
            return f"An event from outside answers {subject} ({answer}){skipped}"
        case "decided_again":
            return f"The event that answers {subject} arrives a second time"
        case "operator":
            return f"An operator says {' '.join(filter(None, (move.detail, subject)))}"
    raise AssertionError(move)


def _outcome(move: Move) -> str:
    label = label_of(move.subject)
    if label.is_undo:
        again = "" if label.attempt == 1 else f" (attempt {label.attempt})"
        return f"{label.unit} is undone{again}"
    what = _capital(spoken(move.subject))
    return f"{what} is done" if move.detail == "ok" else f"{what} is refused"


def _choices(move: Move) -> Iterator[str]:
    for step, number in move.choices:
        if number != 1:
            yield f"{step} is skipped" if number == 0 else f"{step} has {number} items"


def _consequences(scene: Scene) -> Iterator[str]:
    transition = scene.transition
    if transition is None:
        return
    record, before = transition.record, scene.before
    is_changed = before is None or before.status != record.status
    if transition.sendings:
        yield f"the saga sends {', '.join(spoken(each.label) for each in transition.sendings)}"
    if is_changed and before is not None:
        reason = f" ({record.parking.reason})" if record.parking is not None else ""
        yield f"it is {record.status}{reason}"
    if transition.ending is not None:
        yield "and its end is announced"
    is_quiet = before is not None and not transition.sendings and not is_changed
    if is_quiet and transition.rule != "applied":
        yield transition.rule


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text.startswith("the ") else text


def mermaid(story: Sequence[Scene]) -> str:
    """The story as a sequence diagram."""
    names = dict.fromkeys(
        label_of(sending.label).step
        for scene in story
        if scene.transition is not None
        for sending in scene.transition.sendings
    )
    lines = ["sequenceDiagram", "    participant saga", *(f"    participant {n}" for n in names)]
    if any(scene.move.kind == "operator" for scene in story):
        lines.insert(1, "    actor operator")
    if any(scene.move.kind in ("decided", "decided_again") for scene in story):
        lines.insert(1, "    actor outside")
    for scene in story:
        lines += [f"    {line}" for line in _drawn(scene)]
    return "\n".join(lines)


def _drawn(scene: Scene) -> Iterator[str]:
    """The lines of one move, and of what the saga does upon it."""
    move = scene.move
    answer = "ok" if move.detail == "ok" else "refused"
    text = "" if move.kind in ("started", "operator") else spoken(move.subject)
    step = "" if move.kind in ("started", "operator") else label_of(move.subject).step
    match move.kind:
        case "started":
            yield "Note over saga: starts"
        case "answered" | "delivered":
            yield f"{step}-)saga: {answer} ({text})"
        case "answered_again":
            yield f"{step}-)saga: {answer} again ({text})"
        case "handled":
            yield f"Note over {step}: {text} {answer}"
        case "dead_lettered" | "told" | "told_again":
            yield f"{step}--)saga: dead-lettered ({text})"
        case "buried":
            yield f"Note over {step}: {text} dead-lettered"
        case "replayed":
            yield f"Note over {step}: {text} replayed"
        case "timed_out" | "timed_out_again":
            yield f"Note over saga: {text} times out"
        case "decided" | "decided_again":
            yield f"outside-)saga: {answer} ({text})"
        case "operator":
            yield f"operator->>saga: {' '.join(filter(None, (move.detail, move.subject)))}"
    transition = scene.transition
    if transition is None:
        return
    for sending in transition.sendings:
        yield f"saga-){label_of(sending.label).step}: {spoken(sending.label)}"
    if scene.before is not None and scene.before.status != transition.record.status:
        yield f"Note over saga: {transition.record.status}"
