"""Whether a worker is ready: whether messages get through it, in and out.

Nothing is remembered between two questions. Each one looks at the worker's vitals and asks each
service's database, for at most two seconds.
"""

from __future__ import annotations

import asyncio

from eventmesh.errors import EventMeshError
from eventmesh.persistence import outbox, sagas
from eventmesh.persistence.database_time import clocks_differ
from eventmesh.persistence.sagas import SagaLot
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.vitals import Vitals

ANSWER_TIMEOUT = 2.0
"""Seconds within which a database must answer, or else counts as unreachable."""


async def problems(worker: Worker, *, outbox_max_age: float) -> list[str]:
    """Why this worker is not ready, in words for people; empty when it is.

    It is ready when every subscription makes progress or is paused, every relay makes progress,
    every service's database answers, no message has waited in an outbox for more than
    `outbox_max_age` seconds since it could have been relayed, and the clocks of the process and of
    each database agree.
    """
    if worker.vitals.stage != "running":
        return [f"the worker is {worker.vitals.stage}"]
    asked = await asyncio.gather(
        *(
            _database_problems(service, outbox_max_age)
            for service in worker.services
            if service.needs_database
        )
    )
    expected = [
        handler.subscription.name for service in worker.services for handler in service.worked
    ]
    return [
        *_stalled(worker.vitals, expected),
        *(problem for problems in asked for problem in problems),
    ]


def _stalled(vitals: Vitals, expected: list[str]) -> list[str]:
    """The subscriptions and relays that make no progress, and why."""
    known = {
        each.subscription.name: "" if each.paused else each.why_not_consuming
        for each in vitals.subscriptions
    }
    return [
        *(
            f"subscription {name} is stalled: {why}"
            for name in expected
            if (why := known.get(name, "it has not begun"))
        ),
        *(
            f"the relay of service {relay.service} is stalled: {relay.trouble}"
            for relay in vitals.relays
            if relay.trouble
        ),
    ]


async def outbox_age(service: Service) -> float:
    """For how many seconds the oldest message in the outbox could have been relayed; 0 if there is
    none. Unreachable or TimeoutError when the database does not answer. Also asks the database for
    its time."""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        database = await service.database()
        async with database.reading() as connection:
            now = await database.time.ask(connection)
            since = await outbox.oldest(connection, now)
    return 0.0 if since is None else max((now - since).total_seconds(), 0.0)


async def parked_messages(service: Service) -> int:
    """How many messages are parked in the outbox; raises as `outbox_age`."""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        database = await service.database()
        async with database.reading() as connection:
            return await outbox.count_parked(connection)


async def open_sagas(service: Service) -> list[SagaLot]:
    """The open sagas of a service, counted by what they wait for; raises as `outbox_age`."""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        database = await service.database()
        async with database.reading() as connection:
            return await sagas.census(connection)


async def warnings(worker: Worker) -> list[str]:
    """What an operator should look at, though the worker is ready: subscriptions that are paused,
    and messages and sagas that are parked or overdue. Another worker would not do better, so this
    is no reason to replace it. A database that does not answer is left out: `problems` says so."""
    found = [
        f"subscription {each.subscription.name} is {each.paused}; resume it by `eventmesh resume "
        f"{each.subscription.name}`"
        for each in worker.vitals.subscriptions
        if each.paused
    ]
    for service in worker.services:
        if not service.needs_database:
            continue
        try:
            stuck = await parked_messages(service)
            lots = await open_sagas(service) if service.sagas else []
        except (TimeoutError, EventMeshError):
            continue
        if stuck:
            found.append(
                f"service {service.name} has {stuck} parked message(s) in its outbox, which block "
                f"later ones of their keys: see `eventmesh outbox list {service.name} --parked`"
            )
        parked = sum(lot.count for lot in lots if lot.status == "parked")
        overdue = sum(lot.overdue for lot in lots)
        if parked:
            found.append(
                f"service {service.name} has {parked} parked saga(s): see `eventmesh saga list "
                f"{service.name} --status parked`"
            )
        if overdue:
            found.append(
                f"service {service.name} has {overdue} saga(s) that had to time out more than a "
                f"minute ago and have not: see `eventmesh saga list {service.name}` and its outbox"
            )
    return found


async def _database_problems(service: Service, outbox_max_age: float) -> list[str]:
    try:
        age = await outbox_age(service)
    except TimeoutError:
        return [f"the database of service {service.name} does not answer in {ANSWER_TIMEOUT:g} s"]
    except EventMeshError as error:
        return [str(error)]
    problems = []
    if age > outbox_max_age:
        problems.append(
            f"a message has waited in the outbox of service {service.name} for {age:.0f} s: see "
            f"the log for what the broker says about it"
        )
    time = (await service.database()).time
    if time.is_known and (
        problem := clocks_differ(time.difference(service.clock.now()), service.name)
    ):
        problems.append(problem)
    return problems
