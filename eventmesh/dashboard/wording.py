"""What a measurement says, in words: alarms, and why figures are unknown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from eventmesh.operations.status import MeshStatus, SubscriptionStatus

OLD = 300.0
"""Seconds after which a waiting message is an alarm."""

MOST_NAMED = 4
"""How many places are named that are unknown for one reason."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that an operator looks at. `page` and `query` lead to where it is seen."""

    grave: Literal["bad", "warning"]
    text: str
    page: str = ""
    query: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """A reason why figures are unknown, with the figures and places that it concerns."""

    what: str
    why: str


def alarms(status: MeshStatus) -> tuple[Alarm, ...]:
    """What needs somebody's attention, the grave first."""
    return tuple(sorted(_alarms(status), key=lambda each: each.grave != "bad"))


def _alarms(status: MeshStatus) -> Iterator[Alarm]:
    for problem in status.problems:
        yield Alarm("bad", problem)
    for each in status.subscriptions:
        where = (("name", each.name),)
        if each.dead:
            yield Alarm(
                "bad",
                f"{each.dead:,} dead letter{'s' if each.dead != 1 else ''} in {each.name}",
                "/dead-letters",
                (("subscription", each.name),),
            )
        if each.paused is not None:
            yield Alarm("warning", f"{each.name} is {each.paused}", "/subscription", where)
        elif each.ready and each.consumers == 0:
            yield Alarm(
                "bad", f"no worker consumes {each.name}, and messages wait", "/subscription", where
            )
        elif each.oldest_age is not None and each.oldest_age > OLD:
            yield Alarm("warning", f"messages wait for long in {each.name}", "/subscription", where)
        if each.declared is False:
            yield Alarm("warning", f"{each.name} is not on the broker yet", "/subscription", where)
    for database in status.databases:
        if database.outbox is None:
            continue
        name, query = ", ".join(database.services), (("service", database.services[0]),)
        if database.outbox.parked:
            yield Alarm(
                "bad",
                f"{database.outbox.parked:,} parked in the outbox of {name}",
                "/outbox",
                query,
            )
        if database.outbox.due and not database.outbox.relays:
            yield Alarm("bad", f"no relay publishes the outbox of {name}", "/outbox", query)
        elif database.outbox.oldest_age is not None and database.outbox.oldest_age > OLD:
            yield Alarm(
                "warning", f"messages wait for long in the outbox of {name}", "/outbox", query
            )
    for saga in status.sagas:
        query = (("service", saga.service),)
        if saga.parked:
            yield Alarm(
                "bad",
                f"{saga.parked:,} parked: {saga.name}",
                "/sagas",
                (*query, ("status", "parked")),
            )
        if saga.overdue:
            yield Alarm("warning", f"{saga.overdue:,} overdue: {saga.name}", "/sagas", query)


def notes(status: MeshStatus) -> tuple[Note, ...]:
    """Why figures are unknown, each reason once."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}

    def add(why: str, place: str, figure: str) -> None:
        figures, places = found.setdefault(why, ({}, {}))
        figures[figure.replace("_", " ")] = None
        places[place] = None

    for each in status.subscriptions:
        for figure, why in each.unknown.items():
            add(why, each.name, figure)
    for database in status.databases:
        if database.problem is not None:
            add(database.problem, ", ".join(database.services), "outbox")
    for saga in status.sagas:
        if saga.problem is not None:
            add(saga.problem, saga.name, "sagas")
    return tuple(
        Note(f"{', '.join(figures)} of {_named(list(places))}", why)
        for why, (figures, places) in found.items()
    )


def _named(places: list[str]) -> str:
    more = len(places) - MOST_NAMED
    return ", ".join(places[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def total(subscriptions: tuple[SubscriptionStatus, ...], figure: str) -> float | None:
    """The sum of a figure of all subscriptions; None if it is known of none."""
    values = [value for each in subscriptions if (value := getattr(each, figure)) is not None]
    return sum(values) if values else None
