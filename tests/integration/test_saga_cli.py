"""`eventmesh saga` and `eventmesh dlq` as an operator of sagas meets them.

All of it runs in the test's process, but for one command: sagas are made by handing messages to the
coordinator, and commands are called as typer's own tests call them.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner, Result

from eventmesh import Service, Settings
from eventmesh.cli.main import app
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Message
from eventmesh.errors import Conflict, UsageError
from eventmesh.operations.reach import Reach
from eventmesh.operations.sagas import operate
from eventmesh.persistence import actions, migration, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.sagas import SagaRow
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.saga.draft import Transition
from eventmesh.saga.happening import Operation, OperatorAction
from eventmesh.transports.base import Delivery, Subscription, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE, Dead
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.conftest import BECAUSE

if TYPE_CHECKING:
    from tests.integration.conftest import Project

RIDES = """\
from eventmesh import Command, Event, Saga, SagaFailure, Service
from pydantic import BaseModel

class Requested(Event, name="rides.requested", version=1, key="ride"):
    ride: str

class Reserve(Command, name="cars.reserve", version=1, key="ride"):
    ride: str

class Reserved(Event, name="cars.reserved", version=1, key="ride"):
    ride: str

class Release(Command, name="cars.release", version=1, key="ride"):
    ride: str

class Released(Event, name="cars.released", version=1, key="ride"):
    ride: str

class Bill(Command, name="cars.bill", version=1, key="ride"):
    ride: str

class Billed(Event, name="cars.billed", version=1, key="ride"):
    ride: str

class Finished(Event, name="rides.finished", version=1, key="ride"):
    ride: str

class Ride(BaseModel):
    ride: str
    notes: str = ""

saga = Saga("rides.ride", Ride, key=lambda state: state.ride)

@saga.starts
def begin(event: Requested) -> Ride:
    return Ride(ride=event.ride)

@saga.step(ok=Reserved, timeout="1m")
def reserve(state: Ride) -> Reserve:
    return Reserve(ride=state.ride)

@reserve.undo(ok=Released)
def release(state: Ride) -> Release:
    return Release(ride=state.ride)

@saga.pivot(ok=Billed, timeout="1m")
def bill(state: Ride) -> Bill:
    return Bill(ride=state.ride)

saga.flow(reserve >> bill)

@saga.completed
def finished(state: Ride) -> Finished:
    return Finished(ride=state.ride)

service = Service("rides")
service.publisher(Requested)
service.include(saga)
"""

CARS = """\
from eventmesh import Service
from RIDES import Bill, Billed, Release, Released, Reserve, Reserved

service = Service("cars")

@service.subscriber(Reserve)
async def reserve(command: Reserve) -> Reserved:
    return Reserved(ride=command.ride)

@service.subscriber(Release)
async def release(command: Release) -> Released:
    return Released(ride=command.ride)

@service.subscriber(Bill)
async def bill(command: Bill) -> Billed:
    return Billed(ride=command.ride)
"""


DeadLetter = Callable[[str, Message, Mapping[str, str]], Awaitable[str]]
"""Puts a dead letter into a subscription, as a worker does; returns its id."""


@dataclass
class Rides:
    """A project with the services rides, which owns a saga, and cars."""

    project: Project
    code: Mapping[str, Any]
    """What the module of the service rides defines."""
    service: Service
    module: str
    """Where a command finds the same code."""
    ids: dict[str, str] = field(default_factory=dict)
    """The id of each saga, by its ride."""

    async def start(self, *rides: str) -> None:
        """Start a saga for each of these rides: it waits for the step reserve."""
        for ride in rides:
            envelope = await self.handle(self.code["Requested"](ride=ride), "rides")
            self.ids[ride] = envelope.unique_id

    async def answer(self, ride: str, name: str, label: str) -> None:
        """Let the participant answer the saga of a ride."""
        await self.handle(self.code[name](ride=ride), "cars", self.labels(ride, label))

    async def time_out(self, ride: str, label: str) -> None:
        """Let the time-out of this label pass."""
        [handler] = self.service.handlers.values()
        signal: Any = handler.models["rides.ride.signal"]
        message = signal(saga_id=self.ids[ride], label=label, what="timed_out")
        await self.handle(message, "rides")

    async def park(self, ride: str) -> None:
        """Let the pivot of a ride's saga time out."""
        await self.answer(ride, "Reserved", "reserve")
        await self.time_out(ride, "bill")

    async def spoil(self, ride: str, state: Mapping[str, Any]) -> None:
        """Give the saga of a ride a state that its code cannot read."""
        async with (await self.service.database()).connection() as connection:
            of_ride = tables.saga.c.id == self.ids[ride]
            await connection.execute(update(tables.saga).where(of_ride).values(state=state))
            await connection.commit()

    def labels(self, ride: str, label: str) -> dict[str, str]:
        return {"sagaid": f"rides.ride/{self.ids[ride]}", "sagastep": label}

    async def handle(
        self, message: Message, source: str, labels: Mapping[str, str] | None = None
    ) -> Envelope:
        envelope = seal(message, source=source, clock=SystemClock(), extensions=labels)
        [handler] = self.service.handlers.values()
        vitals = SubscriptionVitals("rides", handler.subscription, SystemClock())
        runner = BatchRunner(self.service, handler, vitals)
        assert [each for _, each in await runner.run([Delivery(envelope, 1)])] == [DONE]
        return envelope

    async def sent(self) -> list[str]:
        """The labels of the commands that wait in the outbox, oldest first."""
        async with (await self.service.database()).reading() as connection:
            rows = await connection.execute(tables.outbox.select().order_by(tables.outbox.c.seq))
            attributes = [row._mapping["headers"] for row in rows]
        return [each["sagastep"] for each in attributes if each.get("sagastep")]

    async def timers(self) -> list[str]:
        """The ids of the time-outs that wait in the outbox."""
        async with (await self.service.database()).reading() as connection:
            waiting = tables.outbox.select().where(tables.outbox.c.due_at.is_not(None))
            return [row.id for row in await connection.execute(waiting)]

    async def call(self, *arguments: str) -> Result:
        """Call a command; it has an event loop of its own."""
        return await asyncio.to_thread(CliRunner().invoke, app, arguments)

    async def run(self, *arguments: str) -> str:
        """What `eventmesh saga` prints; the test fails if the command does."""
        result = await self.call("saga", *arguments)
        assert result.exception is None, result.exception
        said: str = result.stdout
        return said

    async def shown(self, ride: str) -> dict[str, Any]:
        said = await self.run("show", "rides", self.ids[ride], "--json")
        found: dict[str, Any] = json.loads(said)
        return found


@pytest.fixture
async def rides(project: Project, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rides]:
    modules = [f"rides_{uuid.uuid4().hex}", f"cars_{uuid.uuid4().hex}"]
    project.write(f"{modules[0]}.py", RIDES)
    project.write(f"{modules[1]}.py", CARS.replace("RIDES", modules[0]))
    project.write(
        "pyproject.toml",
        "[tool.eventmesh.services]\n"
        f'rides = "{modules[0]}:service"\n'
        f'cars = "{modules[1]}:service"\n',
    )
    monkeypatch.chdir(project.root)
    monkeypatch.syspath_prepend(str(project.root))
    for name in [name for name in os.environ if name.startswith("EVENTMESH_")]:
        monkeypatch.delenv(name)
    code: dict[str, Any] = {"__name__": "rides"}
    exec(RIDES, code)  # noqa: S102  # the commands import a service of their own
    url = f"sqlite:///{project.root}/.eventmesh/rides.db"
    service: Service = code["service"]
    service.configure(Settings(database_urls={"rides": url}))
    database = Database(url, service="rides")
    await migration.upgrade(database)
    await database.close()
    yield Rides(project, code, service, modules[0])
    await service.close()
    for module in modules:
        sys.modules.pop(module, None)


async def test_list_counts_open_sagas_by_what_they_wait_for_and_lists_the_oldest(
    rides: Rides,
) -> None:
    await rides.start("a", "b", "c")
    await rides.answer("c", "Reserved", "reserve")
    await rides.answer("c", "Billed", "bill")
    await rides.park("b")
    said = (await rides.run("list", "rides")).splitlines()
    assert re.sub(r"\d+ s", "N s", "\n".join(said[:3])) == (
        "rides.ride v1  parked  bill: 1, the oldest for N s\n"
        "rides.ride v1  running  reserve: 1, the oldest for N s\n"
    )
    assert [line.split()[0] for line in said[3:5]] == [rides.ids["a"], rides.ids["b"]]
    assert said[4].endswith('"b"  bill may have been done, or not: no answer within 60 s')
    assert said[5:] == ["2 saga(s) listed, 2 open"]


async def test_list_filters_by_status_step_key_and_age(rides: Rides) -> None:
    await rides.start("a", "b", "c")
    await rides.answer("c", "Reserved", "reserve")
    await rides.park("b")
    async with (await rides.service.database()).connection() as connection:
        earlier = SystemClock().now() - timedelta(hours=3)
        await connection.execute(
            update(tables.saga)
            .where(tables.saga.c.id == rides.ids["a"])
            .values(started_at=earlier, due_at=earlier)
        )

    async def listed(*options: str) -> list[str]:
        found = json.loads(await rides.run("list", "rides", "--json", *options))
        return [each["key"] for each in found["sagas"]]

    assert await listed() == ["a", "b", "c"]
    assert await listed("--limit", "1") == ["a"]
    assert await listed("--status", "parked") == ["b"]
    assert await listed("--status", "parked", "--status", "running") == ["a", "b", "c"]
    assert await listed("--status", "completed") == []
    assert await listed("--step", "bill") == ["b", "c"]
    assert await listed("--key", "b") == ["b"]
    assert await listed("--older-than", "2h") == ["a"]
    counted = json.loads(await rides.run("list", "rides", "--json"))["open"]
    assert {(each["status"], *each["waiting_for"]): each["overdue"] for each in counted} == {
        ("parked", "bill"): 0,
        ("running", "reserve"): 1,
        ("running", "bill"): 0,
    }


async def test_show_tells_the_whole_story_of_a_saga(rides: Rides) -> None:
    await rides.start("a")
    await rides.park("a")
    lines = (await rides.run("show", "rides", rides.ids["a"][:20])).splitlines()
    assert lines[:5] == [
        f"rides.ride v1  {rides.ids['a']}",
        "status: parked (bill may have been done, or not: no answer within 60 s)",
        "key: a",
        "waits for: bill",
        'state: {"ride": "a", "notes": ""}',
    ]
    story = [line.split("  ", 1)[1] for line in lines[5:]]
    assert story == [
        "started (rides.requested) -> sent reserve",
        "applied reserve (cars.reserved) -> sent bill",
        "parked bill (timed_out) [parked] because bill may have been done, or not: no answer "
        "within 60 s",
    ]
    shown = await rides.shown("a")
    assert (shown["status"], shown["steps"]["reserve"]["status"]) == ("parked", "done")
    assert [each["rule"] for each in shown["log"]] == ["started", "applied", "parked"]


async def test_a_child_saga_names_the_step_of_its_parent(rides: Rides) -> None:
    parent_id = "0190-parent"
    labels = {"sagaid": f"tours.tour/{parent_id}", "sagastep": "travel"}
    envelope = await rides.handle(rides.code["Requested"](ride="a"), "rides", labels)
    said = await rides.run("show", "rides", envelope.unique_id)
    assert f"child of: tours.tour {parent_id}, step travel\n" in said
    shown = json.loads(await rides.run("show", "rides", envelope.unique_id, "--json"))
    assert shown["parent"] == {"saga": "tours.tour", "id": parent_id, "step": "travel"}


async def test_graph_is_a_flow_chart_with_live_counts_on_request(rides: Rides) -> None:
    await rides.start("a", "b")
    plain = await rides.run("graph", "rides")
    counted = await rides.run("graph", "rides", "ride", "--counts")
    assert plain.startswith("flowchart TD\n")
    assert "reserve --> bill" in plain
    assert "here</b>" not in plain
    assert counted.count("<b>2 here</b>") == 1


async def test_retry_sends_again_and_the_log_keeps_who_acted_and_why(rides: Rides) -> None:
    await rides.start("a")
    await rides.park("a")
    said = await rides.run("retry", "rides", rides.ids["a"], "--reason", "the bank is back")
    assert said == f"{rides.ids['a']}: running, waits for bill\n"
    assert await rides.sent() == ["reserve", "bill", "bill#2"]
    last = (await rides.shown("a"))["log"][-1]
    assert (last["operator"], last["why"]) == (getpass.getuser(), "the bank is back")
    async with (await rides.service.database()).reading() as connection:
        [action] = await actions.newest(connection, ["rides"], 10)
    assert (action.who, action.what) == (getpass.getuser(), "retry saga")
    assert action.subject == f"rides.ride {rides.ids['a']}"
    assert (action.reason, action.outcome) == ("the bank is back", "running, waits for bill")
    story = await rides.run("show", "rides", rides.ids["a"])
    assert f"{getpass.getuser()}: retry by an operator -> sent bill#2" in story
    assert "because the bank is back" in story


async def test_skip_goes_on_and_undo_goes_back_and_cancel_ends(rides: Rides) -> None:
    await rides.start("skipped", "undone", "cancelled")
    for ride in ("skipped", "undone"):
        await rides.answer(ride, "Reserved", "reserve")
    told = []
    for command, ride, after in (
        ("skip", "skipped", "completed"),
        ("undo", "undone", "undoing"),
        ("cancel", "cancelled", "cancelled"),
    ):
        said = await rides.run(command, "rides", rides.ids[ride], "--reason", f"we {command} it")
        assert said.startswith(f"{rides.ids[ride]}: {after}")
        told.append(said)
        shown = await rides.shown(ride)
        assert shown["status"] == after
        assert shown["log"][-1]["why"] == f"we {command} it"
    assert f"{rides.ids['skipped']}: completed, skipped bill\n" in told
    shown = await rides.run("show", "rides", rides.ids["skipped"])
    assert ": skip by an operator bill -> published rides.finished [completed] because" in shown


async def test_all_parked_sagas_are_retried_by_one_command(rides: Rides) -> None:
    await rides.start("a", "b", "c")
    for ride in ("a", "b"):
        await rides.park(ride)
    said = await rides.run("retry", "rides", "--parked", "--reason", "the bank is back")
    assert said.splitlines()[-1] == "2 saga(s) retried"
    assert [(await rides.shown(ride))["status"] for ride in "abc"] == ["running"] * 3
    assert sorted(await rides.sent()) == ["bill"] * 2 + ["bill#2"] * 2 + ["reserve"] * 3


async def test_a_parked_saga_that_cannot_be_retried_does_not_hold_the_others_up(
    rides: Rides,
) -> None:
    await rides.start("a", "b")
    for ride in ("a", "b"):
        await rides.park(ride)
    await rides.spoil("a", {"ride": 1})
    result = await rides.call("saga", "retry", "rides", "--parked", "--reason", "the bank is back")
    assert f"{rides.ids['a']}: not retried: the saga cannot go on, because its" in result.stderr
    assert isinstance(result.exception, UsageError)
    assert "1 parked saga(s) could not be retried" in str(result.exception)
    assert result.stdout.splitlines()[-1] == "1 saga(s) retried"
    assert (await rides.shown("b"))["status"] == "running"


Ahead = Callable[[str, Operation], None]
"""From now on, another operator does this to the saga of a ride after a command has read it, and
before the command acts."""


@pytest.fixture
def ahead(rides: Rides, monkeypatch: pytest.MonkeyPatch) -> Ahead:
    def get_ahead(ride: str, operation: Operation) -> None:
        async def overtaken(
            reach: Reach, service: Service, row: SagaRow, decision: OperatorAction, who: str
        ) -> Transition:
            if row.id == rides.ids[ride]:
                await operate(reach, service, row, OperatorAction(operation, "faster"), "Ada")
            return await operate(reach, service, row, decision, who)

        monkeypatch.setattr("eventmesh.operations.sagas.operate", overtaken)

    return get_ahead


@pytest.mark.parametrize("command", ["skip", "retry"])
async def test_without_a_step_a_command_acts_only_on_what_the_saga_waited_for_when_it_was_read(
    rides: Rides, ahead: Ahead, command: str
) -> None:
    """Two operators skip the car: the second must not skip the card, which is the pivot."""
    await rides.start("a")
    ahead("a", "skip")
    result = await rides.call("saga", command, "rides", rides.ids["a"], "--reason", "by phone")
    assert isinstance(result.exception, Conflict)
    assert "it is running now, and waits for bill" in str(result.exception)
    assert (await rides.shown("a"))["waiting_for"] == ["bill"]
    assert await rides.sent() == ["reserve", "bill"]


async def test_a_named_step_is_skipped_only_while_the_saga_waits_for_it(
    rides: Rides, ahead: Ahead
) -> None:
    await rides.start("a", "b")
    named = ["--step", "reserve", "--reason", "by phone"]
    said = await rides.run("skip", "rides", rides.ids["b"], *named)
    assert said == f"{rides.ids['b']}: running, skipped reserve, waits for bill\n"
    ahead("a", "skip")
    result = await rides.call("saga", "skip", "rides", rides.ids["a"], *named)
    assert isinstance(result.exception, UsageError)
    assert "does not wait for 'reserve', but for bill" in str(result.exception)
    assert (await rides.shown("a"))["waiting_for"] == ["bill"]


async def test_a_saga_that_is_not_parked_any_more_is_not_retried_with_the_parked_ones(
    rides: Rides, ahead: Ahead
) -> None:
    """The command of its pivot is on its way again, and would be sent twice."""
    await rides.start("a", "b", "c")
    for ride in ("a", "b", "c"):
        await rides.park(ride)
    ahead("b", "retry")
    result = await rides.call("saga", "retry", "rides", "--parked", "--reason", "the bank is back")
    assert f"{rides.ids['b']}: not retried: the saga has moved on" in result.stderr
    assert isinstance(result.exception, UsageError)
    assert "1 parked saga(s) could not be retried" in str(result.exception)
    assert result.stdout.splitlines()[-1] == "2 saga(s) retried"
    assert sorted(await rides.sent()) == ["bill"] * 3 + ["bill#2"] * 3 + ["reserve"] * 3


async def test_a_saga_whose_state_cannot_be_read_is_shown_and_can_be_cancelled(
    rides: Rides,
) -> None:
    await rides.start("a")
    await rides.spoil("a", {"ride": 1})
    await rides.answer("a", "Reserved", "reserve")
    shown = await rides.run("show", "rides", rides.ids["a"])
    assert "status: parked (its state of version 1 is not valid as Ride: ride:" in shown
    assert "parked reserve (cars.reserved) [parked] because its state of version 1" in shown
    said = await rides.run("cancel", "rides", rides.ids["a"], "--reason", "settled by hand")
    assert said == f"{rides.ids['a']}: cancelled\n"


RENAMED = RIDES.replace('Saga("rides.ride"', 'Saga("rides.trip"')
REMOVED = RIDES.replace("service.include(saga)\n", "")


@pytest.mark.parametrize("code", [RENAMED, REMOVED], ids=["renamed", "removed"])
async def test_what_a_worker_advises_for_a_saga_that_left_the_code_works_as_it_is_written(
    rides: Rides, code: str
) -> None:
    await rides.start("a")
    await rides.park("a")
    await rides.start("b")
    rides.project.write(f"{rides.module}.py", code)

    def refused() -> list[list[str]]:
        """What the worker advises: commands without `eventmesh`."""
        said = rides.project.run("worker", "rides").fails(4, "does not include this saga any more")
        return [each.split()[1:] for each in re.findall(r"`([^`]*)`", said)]

    listing, cancelling = refused()
    listed = rides.project.run(*listing).succeeds("2 saga(s) listed, 2 open")
    ids = re.findall(r"^([0-9a-f-]{36}) .* rides.ride ", listed, re.MULTILINE)
    assert set(ids) == set(rides.ids.values())
    for ride, status in (("a", "parked"), ("b", "running")):
        shown = rides.project.run("saga", "show", "rides", rides.ids[ride]).succeeds()
        assert shown.startswith(f"rides.ride v1  {rides.ids[ride]}\nstatus: {status}")
        assert "started (rides.requested) -> sent reserve" in shown
    for command in ("retry", "skip", "undo"):
        words = f"does not say how to {command} it", "service.include", "eventmesh saga cancel"
        said = rides.project.run("saga", command, "rides", ids[0], "--reason", "x").fails(2)
        assert all(word in said for word in words), said
    parked = rides.project.run("saga", "retry", "rides", "--parked", "--reason", "x")
    assert f"{rides.ids['a']}: not retried: The code of service 'rides'" in parked.err
    assert (parked.code, parked.out) == (2, "0 saga(s) retried\n")
    for saga_id in ids:
        cancel = [{"ID": saga_id, "…": "settled by hand"}.get(word, word) for word in cancelling]
        assert rides.project.run(*cancel).succeeds() == f"{saga_id}: cancelled\n"
        rides.project.run(*cancel).fails(2, "the saga has ended: it is cancelled")
        shown = rides.project.run("saga", "show", "rides", saga_id).succeeds("status: cancelled\n")
        who = f"{getpass.getuser()}: cancelled by an operator [cancelled] because settled by hand"
        assert shown.splitlines()[-1].endswith(who)
    ended = rides.project.run("saga", "list", "rides", "--status", "cancelled")
    ended.succeeds("2 saga(s) listed, 0 open")
    rides.project.run("saga", "list", "rides", "--key", "a").succeeds("1 saga(s) listed, 0 open")
    assert await rides.timers() == []
    worker = rides.project.start("worker", "rides")
    worker.until_says("worker is ready")
    worker.drain()


async def test_what_cannot_be_done_is_a_usage_error_that_says_why(rides: Rides) -> None:
    await rides.start("a", "b")
    await rides.answer("b", "Reserved", "reserve")
    await rides.answer("b", "Billed", "bill")
    first, ended = rides.ids["a"], rides.ids["b"]
    because = ["--reason", "why not"]
    for arguments, *words in (
        (["show", "rides", "ffff"], "no saga ffff", "eventmesh saga list rides"),
        (["retry", "rides", "ffff", *because], "no saga ffff"),
        (["show", "rides", "0"], "ids of several sagas", first, "write more"),
        (["show", "rides", ""], "The id of the saga is empty", "eventmesh saga list rides"),
        (["cancel", "rides", "", *because], "The id of the saga is empty"),
        (["list", "rides", "--status", "dead"], "'dead' is not a status", "parked"),
        (["retry", "rides", *because], "--parked"),
        (["retry", "rides", first, "--parked", *because], "--parked"),
        (["retry", "rides", ended, *because], "the saga has ended: it is completed"),
        (["skip", "rides", first, "--reason", " "], "Say why"),
        (["skip", "rides", first, "--step", "bill", *because], "not wait for 'bill'", "reserve"),
        (["graph", "rides", "lift"], "no saga 'lift'; it has rides.ride."),
        (["graph", "cars"], "Service 'cars' has no saga", "service.include"),
        (["list", "cars"], "Service 'cars' has no saga", "service.include"),
        (["list", "trains"], "trains"),
    ):
        error = (await rides.call("saga", *arguments)).exception
        assert isinstance(error, UsageError), arguments
        assert all(word in str(error) for word in words), error
    for command in ("retry", "skip", "undo", "cancel"):
        result = await rides.call("saga", command, "rides", first)
        assert (result.exit_code, "--reason" in result.stderr) == (2, True)
    for not_utf8 in (
        ["list", "rides", "--key", "\udcff"],
        ["cancel", "rides", first, "--reason", "\udcff"],
    ):
        result = await rides.call("saga", *not_utf8)
        assert (result.exit_code, "is not UTF-8" in result.stderr) == (2, True)
    assert (await rides.shown("a"))["status"] == "running"


async def test_an_action_after_which_the_saga_is_parked_says_why(rides: Rides) -> None:
    await rides.start("a")
    rides.project.write(
        f"{rides.module}.py",
        RIDES.replace("return Bill(ride=state.ride)", "raise OSError(state.ride)"),
    )
    said = await rides.run("skip", "rides", rides.ids["a"], "--reason", "x")
    assert said.startswith(f"{rides.ids['a']}: parked (bill failed: OSError: a), waits for reserve")


async def test_an_empty_id_does_not_mean_the_only_saga(rides: Rides) -> None:
    """A variable of a script may be empty."""
    await rides.start("a")
    for command in ("retry", "skip", "undo", "cancel"):
        result = await rides.call("saga", command, "rides", "", "--reason", "x")
        assert "The id of the saga is empty" in str(result.exception)
    assert [each["rule"] for each in (await rides.shown("a"))["log"]] == ["started"]


async def test_control_characters_of_a_key_or_state_never_reach_the_terminal(rides: Rides) -> None:
    evil = "\x1b]0;owned\x07\u202e\r"
    await rides.start(evil)
    for arguments in (["list", "rides"], ["show", "rides", rides.ids[evil]]):
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(await rides.run(*arguments))


async def test_the_installed_command_lists_and_fails_as_the_others_do(rides: Rides) -> None:
    await rides.start("a")
    rides.project.run("saga", "list", "rides").succeeds("1 saga(s) listed, 1 open")
    rides.project.run("saga", "list", "rides", "--older-than", "1h").succeeds(
        "0 saga(s) listed, 1 open\nSagas that have ended are listed by --status completed"
    )
    rides.project.run("saga", "retry", "rides", "ffff", "--reason", "x").fails(2, "no saga ffff")


def test_the_command_line_starts_without_the_code_of_sagas(project: Project) -> None:
    program = (
        "import sys\n"
        "import eventmesh.cli.main\n"
        "late = ['eventmesh.saga', 'sqlalchemy', 'pydantic', 'aio_pika', 'redis']\n"
        "print([name for name in late if name in sys.modules])\n"
    )
    ended = project.start_program(sys.executable, "-c", program).ended()
    assert ended.succeeds() == "[]\n"


@pytest.fixture
async def dead_letter(rides: Rides) -> DeadLetter:
    await rides.call("db", "upgrade", "cars")  # where actions are recorded
    url = f"sqlite:///{rides.project.root}/.eventmesh/broker.db"

    async def put(subscriber: str, message: Message, labels: Mapping[str, str]) -> str:
        source = message.__identity__.name.partition(".")[0]
        envelope = seal(message, source=source, clock=SystemClock(), extensions=labels)
        subscription = Subscription(subscriber, (message.__identity__.name,))
        async with open_transport(url, SystemClock(), Settings().transport_options) as transport:
            await transport.declare([subscription])
            await publish_or_raise(transport, [envelope])
            async with transport.consume(subscription, prefetch=1) as consumer:
                [delivery] = await consumer.receive(1)
                await consumer.settle([(delivery, Dead("it failed"))])
            [letter] = await transport.dead_letters(subscription, limit=10)
        return letter.id

    return put


async def test_a_dead_letter_of_a_command_names_its_saga_and_what_follows(
    rides: Rides, dead_letter: DeadLetter
) -> None:
    await rides.start("a")
    saga_id, command = rides.ids["a"], rides.code["Reserve"](ride="a")
    letter = await dead_letter("cars.reserve", command, rides.labels("a", "reserve"))
    said = (await rides.call("dlq", "show", "cars", letter)).stdout
    assert (
        "saga:\n    name = rides.ride\n"
        f"    id = {saga_id}\n    step = reserve\n"
        "    effect = it was notified of this dead letter\n"
        f"    see = eventmesh saga show rides {saga_id}\n"
    ) in said
    [listed] = json.loads((await rides.call("dlq", "list", "cars", "--json")).stdout)
    assert (listed["saga"]["id"], listed["saga"]["step"]) == (saga_id, "reserve")
    discarded = await rides.call("dlq", "discard", "cars", *BECAUSE, letter)
    assert discarded.stdout == "1 dead letter(s) discarded\n"
    assert discarded.stderr == (
        f"saga rides.ride {saga_id} (step reserve) was notified of this dead letter: it has sent "
        f"the command again, is undone, or is parked: see `eventmesh saga show rides {saga_id}`\n"
    )
    await dead_letter("cars.reserve", command, rides.labels("a", "reserve#2"))
    replayed = await rides.call("dlq", "replay", "cars", *BECAUSE, "--all")
    assert replayed.stdout == "1 dead letter(s) replayed\n"
    assert replayed.stderr == (
        f"saga rides.ride {saga_id} (step reserve#2) was notified of this dead letter: if it has "
        f"gone on without the step, a success now is a late answer: the step is undone, or the "
        f"saga is parked where nothing undoes it: see `eventmesh saga show rides {saga_id}`\n"
    )


async def test_a_dead_letter_of_an_undo_says_that_a_success_counts_as_the_undo(
    rides: Rides, dead_letter: DeadLetter
) -> None:
    await rides.start("a")
    about = f"saga rides.ride {rides.ids['a']} (step reserve:undo) was notified of this dead letter"
    undo = rides.code["Release"](ride="a")
    await dead_letter("cars.release", undo, rides.labels("a", "reserve:undo"))
    replayed = await rides.call("dlq", "replay", "cars", *BECAUSE, "--all")
    assert f"{about}: a success now counts as the undo, if that is still waited for" in (
        replayed.stderr
    )
    await dead_letter("cars.release", undo, rides.labels("a", "reserve:undo"))
    discarded = await rides.call("dlq", "discard", "cars", *BECAUSE, "--all")
    assert f"{about}: it has sent the undo again, or is parked" in discarded.stderr


@pytest.mark.parametrize("by", ["label", "signal", "key"])
async def test_to_discard_what_a_saga_has_not_received_warns_that_it_may_wait(
    rides: Rides, dead_letter: DeadLetter, by: str
) -> None:
    await rides.start("a")
    saga_id, labels = rides.ids["a"], rides.labels("a", "reserve")
    message = rides.code["Reserved"](ride="a")
    if by == "signal":
        [handler] = rides.service.handlers.values()
        signal: Any = handler.models["rides.ride.signal"]
        message = signal(saga_id=saga_id, label="reserve", what="dead_lettered")
    letter = await dead_letter("rides.ride.saga", message, labels if by == "label" else {})
    which = "saga rides.ride" + ("" if by == "key" else f" {saga_id} (step reserve)")
    see = "saga list rides" if by == "key" else f"saga show rides {saga_id}"
    said = (await rides.call("dlq", "show", "rides", letter)).stdout
    assert "effect = it has not received this, and may wait until its time-out" in said
    discarded = await rides.call("dlq", "discard", "rides", *BECAUSE, letter, "unknown")
    assert "no dead letter unknown" in str(discarded.exception)
    assert discarded.stderr == (
        f"Warning: {which} never receives it, and may wait until its time-out: see "
        f"`eventmesh {see}`\n"
    )


async def test_to_discard_a_time_out_warns_that_the_saga_waits_for_an_operator(
    rides: Rides, dead_letter: DeadLetter
) -> None:
    await rides.start("a")
    [handler] = rides.service.handlers.values()
    signal: Any = handler.models["rides.ride.signal"]
    message = signal(saga_id=rides.ids["a"], label="reserve", what="timed_out")
    letter = await dead_letter("rides.ride.saga", message, {})
    discarded = await rides.call("dlq", "discard", "rides", *BECAUSE, letter)
    assert discarded.stderr == (
        f"Warning: saga rides.ride {rides.ids['a']} (step reserve) does not time out, and may wait "
        f"until an operator retries it: see `eventmesh saga show rides {rides.ids['a']}`\n"
    )


async def test_a_dead_letter_that_starts_a_saga_says_so(
    rides: Rides, dead_letter: DeadLetter
) -> None:
    letter = await dead_letter("rides.ride.saga", rides.code["Requested"](ride="a"), {})
    said = (await rides.call("dlq", "show", "rides", letter)).stdout
    assert "effect = it was not started" in said
    replayed = await rides.call("dlq", "replay", "rides", *BECAUSE, letter)
    assert replayed.stderr == ("saga rides.ride is started now: see `eventmesh saga list rides`\n")


async def test_a_dead_letter_that_concerns_no_saga_says_nothing_of_sagas(
    rides: Rides, dead_letter: DeadLetter
) -> None:
    letter = await dead_letter("cars.reserve", rides.code["Reserve"](ride="a"), {})
    assert "saga" not in (await rides.call("dlq", "show", "cars", letter)).stdout
    discarded = await rides.call("dlq", "discard", "cars", *BECAUSE, letter)
    assert (discarded.stdout, discarded.stderr) == ("1 dead letter(s) discarded\n", "")
