"""What cannot be a reaction is refused when it is declared, in words that name the fix."""

from __future__ import annotations

from typing import Any

import pytest

from eventmesh import Command, Event, Service, Transaction
from eventmesh.errors import UsageError


class Placed(Event, name="orders.placed", version=1, key="order"):
    order: int


class Cancelled(Event, name="orders.cancelled", version=1, key="order"):
    order: int


class Keyless(Event, name="orders.keyless", version=1):
    order: int


class Place(Command, name="points.place", version=1, key="order"):
    order: int


async def collect(event: Placed, tx: Transaction) -> int:
    return event.order


async def give_back(event: Cancelled, points: int, tx: Transaction) -> None: ...


async def takes_another_event(event: Cancelled, tx: Transaction) -> int: ...


async def takes_too_little(event: Placed) -> int: ...


async def returns_a_session(event: Placed, tx: Transaction) -> Transaction: ...


def is_no_coroutine(event: Placed, tx: Transaction) -> int:
    return event.order


@pytest.mark.parametrize(
    ("event", "undone_by", "function", "words"),
    [
        (Keyless, Cancelled, collect, "Keyless, which has no key"),
        (Placed, Keyless, collect, "Keyless, which has no key"),
        (Place, Cancelled, collect, "which is not an event"),
        (Placed, Placed, collect, "undone by the event that it reacts to"),
        (Placed, Cancelled, takes_another_event, "annotate it with Placed"),
        (Placed, Cancelled, takes_too_little, "takes 1 parameters, and it is called with 2"),
        (Placed, Cancelled, returns_a_session, "cannot be recorded as JSON"),
        (Placed, Cancelled, is_no_coroutine, "write `async def is_no_coroutine`"),
    ],
)
def test_a_mistake_in_the_declaration_is_an_error_that_names_the_fix(
    event: Any, undone_by: Any, function: Any, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Service("points").reaction(event, undone_by=undone_by)(function)
    assert words in str(caught.value)


def test_a_reaction_has_one_undo() -> None:
    reaction = Service("points").reaction(Placed, undone_by=Cancelled)(collect)
    reaction.undo(give_back)
    with pytest.raises(UsageError, match="has two undos: remove one"):
        reaction.undo(give_back)


def test_an_undo_that_takes_another_event_is_an_error() -> None:
    reaction: Any = Service("points").reaction(Placed, undone_by=Cancelled)(collect)

    async def undo(event: Placed, points: int, tx: Transaction) -> None: ...

    with pytest.raises(UsageError, match="annotate it with Cancelled"):
        reaction.undo(undo)
