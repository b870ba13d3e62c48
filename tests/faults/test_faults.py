"""Real services in real processes on real servers, and one fault at a time in the middle of their
work: every message takes effect exactly once in every subscription, in its order where that is
promised, and it goes on soon after the fault is over: in less than five seconds where nothing else
takes the machine's time, which the soak checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import faults
from tests.faults.conftest import At, Record
from tests.faults.fault_run import check, run_through_fault
from tests.faults.faults import Fault, nowhere

ANY_BROKER = ("sqlite", "redis", "amqp")
ANY_DATABASE = ("sqlite", "postgres")
SERVERS = ("redis", "amqp")

UNTIL_SILENCE_IS_NOTICED = 30.0
"""Seconds. Of a connection that is open and does not answer, nobody can say at once that it is lost
and not slow."""

Where = tuple[str, str]


def everywhere(
    fault: Fault, brokers: tuple[str, ...], databases: tuple[str, ...], *telling: Where
) -> Iterator[object]:
    """A fault on all combinations; those that are not the most telling ones are left to a soak."""
    for broker in brokers:
        for database in databases:
            marks = [] if (broker, database) in telling else [pytest.mark.soak]
            name = f"{fault.name}-{broker}-{database}".replace(" ", "_")
            yield pytest.param(fault, broker, database, marks=marks, id=name)


MATRIX = [
    *everywhere(
        Fault("workers killed", faults.workers_killed, ordered=nowhere),
        ANY_BROKER,
        ANY_DATABASE,
        ("redis", "postgres"),
    ),
    *everywhere(
        Fault(
            "children killed",
            faults.children_killed,
            options=("--workers", "2"),
            processes=2,
            ordered=nowhere,
            exit_code=1,
        ),
        ANY_BROKER,
        ANY_DATABASE,
        ("sqlite", "sqlite"),
    ),
    *everywhere(
        Fault(
            "parent killed",
            faults.parent_killed,
            options=("--workers", "2"),
            processes=2,
            ordered=nowhere,
        ),
        ANY_BROKER,
        ANY_DATABASE,
    ),
    *everywhere(
        Fault("broker stopped and started", faults.broker_stopped, stops=True),
        SERVERS,
        ANY_DATABASE,
    ),
    *everywhere(
        Fault("broker killed and started", faults.broker_killed, stops=True),
        SERVERS,
        ANY_DATABASE,
        ("redis", "sqlite"),
    ),
    *everywhere(
        Fault("Redis read-only", faults.redis_read_only, stops=True),
        ("redis",),
        ANY_DATABASE,
        ("redis", "sqlite"),
    ),
    *everywhere(
        Fault("Redis out of memory", faults.redis_out_of_memory, stops=True),
        ("redis",),
        ANY_DATABASE,
    ),
    *everywhere(
        Fault("Redis cannot save", faults.redis_cannot_save, stops=True),
        ("redis",),
        ANY_DATABASE,
    ),
    *everywhere(
        Fault("RabbitMQ disk alarm", faults.disk_alarm, stops=True),
        ("amqp",),
        ANY_DATABASE,
    ),
    *everywhere(
        Fault(
            "broker connections cut in a batch",
            faults.cut_in_a_batch(faults.broker_link),
            through="broker",
        ),
        SERVERS,
        ANY_DATABASE,
        ("redis", "postgres"),
        ("amqp", "sqlite"),
    ),
    *everywhere(
        Fault("broker refuses", faults.refused(faults.broker_link), through="broker", stops=True),
        SERVERS,
        ANY_DATABASE,
    ),
    *everywhere(
        Fault("broker silent", faults.silent(faults.broker_link), through="broker", stops=True),
        SERVERS,
        ANY_DATABASE,
        ("redis", "sqlite"),
    ),
    *everywhere(
        Fault(
            "broker forgets",
            faults.forgotten(faults.broker_link),
            through="broker",
            within=UNTIL_SILENCE_IS_NOTICED,
        ),
        SERVERS,
        ANY_DATABASE,
    ),
    *everywhere(
        Fault(
            "database connections cut in a batch",
            faults.cut_in_a_batch(faults.database_link),
            through="database",
        ),
        ANY_BROKER,
        ("postgres",),
        ("redis", "postgres"),
    ),
    *everywhere(
        Fault(
            "database refuses", faults.refused(faults.database_link), through="database", stops=True
        ),
        ANY_BROKER,
        ("postgres",),
    ),
    *everywhere(
        Fault(
            "database silent", faults.silent(faults.database_link), through="database", stops=True
        ),
        ANY_BROKER,
        ("postgres",),
        ("sqlite", "postgres"),
    ),
    *everywhere(
        Fault("backends killed", faults.backends_killed),
        ANY_BROKER,
        ("postgres",),
        ("amqp", "postgres"),
    ),
    *everywhere(
        Fault("database read-only", faults.database_read_only, stops=True),
        ANY_BROKER,
        ("postgres",),
        ("redis", "postgres"),
    ),
    *everywhere(
        Fault("database stopped and started", faults.database_stopped, stops=True),
        ANY_BROKER,
        ("postgres",),
    ),
    *everywhere(
        Fault("database killed and started", faults.database_killed, stops=True),
        ANY_BROKER,
        ("postgres",),
        ("redis", "postgres"),
    ),
    *everywhere(
        Fault("database file locked", faults.locked(faults.database_file), stops=True),
        ANY_BROKER,
        ("sqlite",),
        ("redis", "sqlite"),
    ),
    *everywhere(
        Fault("broker file locked", faults.locked(faults.broker_file), stops=True),
        ("sqlite",),
        ANY_DATABASE,
        ("sqlite", "postgres"),
    ),
]


@pytest.mark.parametrize(("fault", "broker", "database"), MATRIX)
async def test_every_message_takes_effect_once(
    fault: Fault, broker: str, database: str, at: At, record: Record, amount: int, hold: float
) -> None:
    async with at(broker, database, through=fault.through) as system:
        row = await run_through_fault(system, fault, amount, hold)
        record(row)
        check(system, row)
