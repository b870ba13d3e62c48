"""What cannot be a reaction is refused when it is declared, in words that name the fix."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, Json, computed_field

from eventmesh import Command, Event, Service, Transaction
from eventmesh.errors import UsageError
from eventmesh.persistence import tables
from eventmesh.testing.mesh import Mesh


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


class Aliased(BaseModel):
    points: int = Field(0, alias="pointsGiven")


class ReadByAnotherName(BaseModel):
    points: int = Field(validation_alias="pointsGiven")


class WrittenByAlias(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    points: int = Field(0, alias="pointsGiven")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    points: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.points * 2


class Swapped(BaseModel):
    points: int = Field(0, alias="bonus")
    bonus: int = Field(0, alias="points")


class Text(BaseModel):
    points: Json[list[int]]


RESULTS: tuple[BaseModel, ...] = (
    Aliased(pointsGiven=3),
    ReadByAnotherName(pointsGiven=3),
    WrittenByAlias(pointsGiven=3),
    Computed(points=3),
    Swapped(bonus=3, points=4),
    Text(points="[3]"),
)


async def undone_with(mesh: Mesh, result: BaseModel, earlier: str | None = None) -> list[Any]:
    """What the undo of a reaction that returned this was called with; `earlier`: as JSON that an
    earlier release recorded."""
    shop, points, taken = Service("orders"), Service("points"), list[Any]()
    shop.publisher(Placed)
    shop.publisher(Cancelled)

    async def react(event: Placed, tx: Transaction) -> Any:
        return result

    async def undo(event: Cancelled, result: Any, tx: Transaction) -> None:
        taken.append(result)

    react.__annotations__["return"] = type(result)
    points.reaction(Placed, undone_by=Cancelled)(react).undo(undo)
    await mesh.start(shop, points)
    await mesh.publish(Placed(order=1))
    await mesh.quiet()
    if earlier is not None:
        async with mesh.session(points) as session:
            kept = {"result": json.loads(earlier)}
            await session.execute(tables.reaction.update().values(result=kept))
            await session.commit()
    await mesh.publish(Cancelled(order=1))
    await mesh.quiet()
    return taken


@pytest.mark.parametrize("result", RESULTS, ids=lambda each: type(each).__name__)
async def test_an_undo_gets_what_the_reaction_returned_whatever_its_fields_are_called_in_json(
    mesh: Mesh, result: BaseModel
) -> None:
    assert await undone_with(mesh, result) == [result]


@pytest.mark.parametrize(
    ("result", "earlier"),
    [
        (Aliased(pointsGiven=3), '{"points": 3}'),
        (ReadByAnotherName(pointsGiven=3), '{"points": 3}'),
        (WrittenByAlias(pointsGiven=3), '{"pointsGiven": 3}'),
        (Computed(points=3), '{"points": 3, "twice": 6}'),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_an_undo_gets_what_an_earlier_release_has_recorded(
    mesh: Mesh, result: BaseModel, earlier: str
) -> None:
    assert await undone_with(mesh, result, earlier) == [result]
