"""`eventmesh asyncapi`: the AsyncAPI 3 document of any services."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from pydantic import BaseModel, Field

from eventmesh import Command, Event, Service, Settings
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.errors import UsageError
from eventmesh.integrations.faststream.asyncapi import document
from services.inventory.service import service as inventory
from services.orders.service import service as orders
from services.payments.service import service as payments
from services.shipping.service import service as shipping

if TYPE_CHECKING:
    from tests.integration.conftest import Ended, Project

ROOT = Path(__file__).parents[2]
SHOP = (orders, payments, inventory, shipping)

COMPONENT_KEY = re.compile(r"[a-zA-Z0-9.\-_]+")


def described(*services: Service) -> dict[str, Any]:
    spec: dict[str, Any] = document(
        services, title="a test", version="1.2.3", description="Of a test."
    ).to_jsonable()
    return spec


def references(node: Any) -> Iterator[str]:
    match node:
        case dict():
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        case list():
            for item in node:
                yield from references(item)


def resolve(spec: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/"), reference
    node: Any = spec
    for step in reference.removeprefix("#/").split("/"):
        assert step in node, f"{reference} has no target"
        node = node[step]
    return node


def check(spec: dict[str, Any]) -> None:
    """Check what AsyncAPI 3.0.0 requires of the objects that occur here."""
    assert spec["asyncapi"] == "3.0.0"
    assert spec["info"]["title"]
    assert spec["info"]["version"]
    for reference in references(spec):
        resolve(spec, reference)
    for kind in spec["components"].values():
        for key in kind:
            assert COMPONENT_KEY.fullmatch(key), key
    addresses = [channel["address"] for channel in spec["channels"].values()]
    assert len(set(addresses)) == len(addresses)
    for channel in spec["channels"].values():
        assert channel["messages"]
    for operation in spec["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel_reference = operation["channel"]["$ref"]
        assert re.fullmatch(r"#/channels/[^/]+", channel_reference)
        assert operation["messages"]
        for message in operation["messages"]:  # a subset of the channel's own
            assert message["$ref"].startswith(f"{channel_reference}/messages/")
    for message in spec["components"]["messages"].values():
        assert message["contentType"] == "application/json"
        assert message["headers"]["type"] == "object"
        assert "properties" in resolve(spec, message["payload"]["$ref"])
    round_trip = ApplicationSchema.model_validate(spec)
    assert round_trip.to_jsonable() == spec


def payload(spec: dict[str, Any], key: str) -> dict[str, Any]:
    schema: dict[str, Any] = resolve(spec, spec["components"]["messages"][key]["payload"]["$ref"])
    return schema


def test_the_shop_has_a_channel_for_each_message_and_operations_for_each_service() -> None:
    spec = described(*SHOP)
    check(spec)
    owned = {model.__identity__.name for service in SHOP for model in service.registry.owned()}
    assert set(spec["channels"]) == owned
    operations = spec["operations"]
    assert operations["payments.send.payments.payment_captured"]["action"] == "send"
    saga = operations["orders.fulfil_order.saga.receive.payments.payment_captured"]
    assert saga["action"] == "receive"
    assert saga["tags"] == [{"name": "orders"}]
    assert operations["orders.send.payments.capture_payment"]["action"] == "send"  # by the saga
    assert operations["payments.capture.receive.payments.capture_payment"]["action"] == "receive"
    message = spec["components"]["messages"]["payments.payment_captured.v1"]
    assert message["title"] == "PaymentCaptured v1"
    assert message["headers"]["properties"]["dataschema"] == {
        "const": "urn:eventmesh:payments.payment_captured:1"
    }


def test_an_event_is_described_as_its_owner_writes_it() -> None:
    schema = payload(described(*SHOP), "payments.payment_captured.v1")
    assert set(schema["required"]) == {"order_id", "payment_id", "amount", "currency"}
    assert schema["properties"]["amount"]["type"] == "string"  # and not a number, as it may read


def test_a_single_service_describes_foreign_messages_as_it_reads_them() -> None:
    spec = described(orders)
    check(spec)
    schema = payload(spec, "payments.payment_captured.v1")
    assert set(schema["properties"]) == {"order_id", "payment_id"}
    assert {operation["tags"][0]["name"] for operation in spec["operations"].values()} == {"orders"}
    assert "payments.send.payments.payment_captured" not in spec["operations"]


def test_the_document_does_not_depend_on_the_order_of_the_services() -> None:
    assert described(*SHOP) == described(*reversed(SHOP))
    assert json.dumps(described(*SHOP)) == json.dumps(described(*reversed(SHOP)))


class Address(BaseModel):
    street: str


class Ordered(Event, name="shop.ordered", version=3):
    """What was ordered.

    By whom, we do not say.
    """

    address: Address
    note: str = ""


def reader(name: str, **fields: Any) -> Service:
    """A service with its own models of the same event and of its nested object."""
    space = {"__annotations__": fields, "__module__": __name__}
    model: Any = type(Event)("Ordered", (Event,), space, name="shop.ordered", version=3)
    service = Service(name)

    async def look(event: Any) -> None: ...

    look.__annotations__ = {"event": model}
    service.subscriber()(look)
    return service


def nested(**fields: Any) -> Any:
    return type(BaseModel)(
        "Address", (BaseModel,), {"__annotations__": fields, "__module__": __name__}
    )


def test_without_the_owner_each_reader_has_its_own_schema() -> None:
    first = reader("first", address=nested(street=str))
    second = reader("second", address=nested(town=int))
    spec = described(first, second)
    check(spec)
    views = {key: payload(spec, key) for key in spec["channels"]["shop.ordered"]["messages"]}
    assert set(views) == {"shop.ordered.v3.first", "shop.ordered.v3.second"}
    towns = resolve(spec, views["shop.ordered.v3.second"]["properties"]["address"]["$ref"])
    assert set(towns["properties"]) == {"town"}
    received = spec["operations"]["second.look.receive.shop.ordered"]["messages"]
    assert received == [{"$ref": "#/channels/shop.ordered/messages/shop.ordered.v3.second"}]


def test_with_the_owner_there_is_only_its_schema() -> None:
    shop = Service("shop")
    shop.publisher(Ordered)
    spec = described(reader("first", address=nested(street=str)), shop)
    check(spec)
    assert set(spec["channels"]["shop.ordered"]["messages"]) == {"shop.ordered.v3"}
    assert set(payload(spec, "shop.ordered.v3")["required"]) == {"address", "note"}
    assert set(spec["components"]["schemas"]) == {"shop.ordered.v3", "shop.ordered.v3.Address"}
    message = spec["components"]["messages"]["shop.ordered.v3"]
    assert message["description"] == "What was ordered.\n\nBy whom, we do not say."


class Pack(Command, name="store.pack", version=1):
    count: int = 1


def test_a_command_is_described_as_its_owner_reads_it() -> None:
    store = Service("store")

    @store.subscriber(Pack)
    async def pack(command: Pack) -> None: ...

    spec = described(store)
    check(spec)
    assert "required" not in payload(spec, "store.pack.v1")


# The command


@pytest.fixture
def shop(project: Project) -> Project:
    """A project in which the shop is discovered."""
    lines = [f'{each.name} = "services.{each.name}.service:service"' for each in SHOP]
    project.write(
        "pyproject.toml",
        '[project]\nname = "a-shop"\nversion = "4.5"\n[tool.eventmesh.services]\n'
        + "\n".join(lines),
    )
    (project.root / "services").symlink_to(ROOT / "services")
    return project


def asyncapi(shop: Project, *runs: Sequence[str]) -> list[Ended]:
    return shop.run_all(*(("asyncapi", *arguments) for arguments in runs))


def test_the_command_writes_the_document(shop: Project) -> None:
    everything, some = asyncapi(shop, ["--output", "shop.json"], ["shipping", "orders"])
    assert everything.succeeds() == ""
    spec = json.loads((shop.root / "shop.json").read_text())
    check(spec)
    assert set(spec["channels"]) == set(described(*SHOP)["channels"])
    assert (spec["info"]["title"], spec["info"]["version"]) == ("a-shop", "4.5")
    assert json.loads(some.succeeds())["info"]["title"] == "orders, shipping"


def test_the_command_writes_yaml(shop: Project) -> None:
    as_json, as_yaml = asyncapi(shop, [], ["--format", "yaml"])
    assert yaml.safe_load(as_yaml.succeeds()) == json.loads(as_json.succeeds())


def test_a_user_error_is_reported_in_one_paragraph(shop: Project) -> None:
    unknown, unwritable = asyncapi(shop, ["nobody"], ["--output", "no/such/folder.json"])
    unknown.fails(2, "There is no service 'nobody'")
    unwritable.fails(2, "Cannot write no/such/folder.json: No such file or directory")


class SoldOnce(Event, name="mall.sold", version=1):
    cents: int


class Tag(BaseModel):
    text: str = ""


class Sold(Event, name="mall.sold", version=2):
    price: str
    tags: list[Tag] = Field(default_factory=list)


@Sold.downcaster(to_version=1)
def to_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"cents": round(float(data["price"]) * 100)}


def selling(schemas: Path) -> Service:
    mall = Service("mall")
    mall.configure(Settings(schemas=schemas))
    mall.publisher(Sold, version=1)
    return mall


def test_an_event_that_is_sent_as_an_older_version_is_described_as_that_version(
    tmp_path: Path,
) -> None:
    freeze([SoldOnce], tmp_path)
    freeze([Sold], tmp_path)
    spec = described(selling(tmp_path))
    check(spec)
    assert list(payload(spec, "mall.sold.v1")["properties"]) == ["cents"]
    headers = spec["components"]["messages"]["mall.sold.v1"]["headers"]
    assert headers["properties"]["dataschema"] == {"const": "urn:eventmesh:mall.sold:1"}


def test_an_older_version_without_a_lock_file_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"published as version 1, of which .* no lock file"):
        described(selling(tmp_path))
