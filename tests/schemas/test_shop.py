"""The committed schemas of the shop are those of its code, with samples that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eventmesh.contracts.locks.drift import check
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_folder import lock_path, read_locks
from eventmesh.contracts.message import Message
from eventmesh.runtime.declaring.discovery import load_services
from eventmesh.saga import shape_locks

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "schemas"


def owned_models() -> list[type[Message]]:
    return [model for service in load_services([], ROOT) for model in service.registry.owned()]


committed = pytest.mark.skipif(
    not any(SCHEMAS.rglob("*.json")), reason="the shop's schemas are not frozen yet"
)


@committed
def test_the_committed_schemas_are_those_of_the_code() -> None:
    assert [str(problem) for problem in check(owned_models(), read_locks(SCHEMAS))] == []


@committed
def test_every_committed_schema_belongs_to_a_message_or_a_saga_of_the_shop() -> None:
    folders = {lock_path(SCHEMAS, model).parent for model in owned_models()}
    for service in load_services([], ROOT):
        folders |= {shape_locks.folder_of(SCHEMAS, saga) for saga in service.sagas}
    strays = [path for path in SCHEMAS.rglob("*.json") if path.parent not in folders]
    assert strays == []


def test_the_messages_of_the_shop_have_no_drift_after_freezing(tmp_path: Path) -> None:
    models = owned_models()
    assert len(freeze(models, tmp_path)) == len(models)
    assert check(models, read_locks(tmp_path)) == []


@committed
def test_every_sample_is_a_message_that_the_shop_writes() -> None:
    locks = read_locks(SCHEMAS)
    for model in owned_models():
        identity = model.__identity__
        samples = [s for lock in locks.of(identity.name)[identity.version] for s in lock.samples]
        assert samples
        for sample in samples:
            message = model.model_validate_json(json.dumps(sample))
            assert json.loads(message.model_dump_json(by_alias=True)) == sample


def test_each_message_of_the_shop_has_one_owner() -> None:
    names = [model.__identity__.name for model in owned_models()]
    assert len(names) == len(set(names))
    assert {name.partition(".")[0] for name in names} == {
        "inventory",
        "orders",
        "payments",
        "shipping",
    }
