"""Which subscription can read which version of a message."""

from __future__ import annotations

from pathlib import Path

from eventmesh import Event, Service, Settings
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.operations.verdicts import ReadingVerdict, reading_verdicts


class Sold(Event, name="shop.sold", version=1):
    number: int


class NotedSold(Event, name="shop.sold", version=2):
    number: int
    note: str


async def read_first(event: Sold) -> None: ...


async def read_second(event: NotedSold) -> None: ...


def reader(name: str, *, second: bool) -> Service:
    service = Service(name)
    service.subscriber(name="read")(read_second if second else read_first)
    return service


def seller(model: type[Event]) -> Service:
    shop = Service("shop")
    shop.publisher(model)
    return shop


def verdicts(*services: Service, root: Path) -> tuple[ReadingVerdict, ...]:
    return reading_verdicts(services, Settings(schemas=Path("schemas")), root)


def test_each_version_that_may_arrive_has_a_verdict_for_each_reader(tmp_path: Path) -> None:
    freeze([Sold], tmp_path / "schemas")
    freeze([NotedSold], tmp_path / "schemas")
    ledger, mail = reader("ledger", second=True), reader("mail", second=False)
    found = verdicts(seller(NotedSold), ledger, mail, root=tmp_path)
    seen = [(each.version, *each.subscriptions, each.model_version, each.says) for each in found]
    assert seen == [
        (1, "ledger.read", 2, "not readable"),
        (1, "mail.read", 1, "readable"),
        (2, "ledger.read", 2, "readable"),
        (2, "mail.read", 1, "readable"),
    ]
    assert {each.senders for each in found} == {("shop",)}
    assert found[0].why is not None
    assert "note" in found[0].why
    assert found[0].witness == '{"number":0}'
    assert found[1].why is None


def test_without_frozen_schemas_what_is_written_today_is_judged(tmp_path: Path) -> None:
    [verdict] = verdicts(seller(Sold), reader("ledger", second=False), root=tmp_path)
    assert (verdict.version, verdict.says) == (1, "readable")
