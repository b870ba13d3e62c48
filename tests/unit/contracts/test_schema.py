from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, computed_field, create_model

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.contracts.schema import (
    Finding,
    canonical,
    check,
    freeze,
    lock,
    lock_path,
    refuse_drift,
)
from eventmesh.errors import Drift


def paid(
    key: str | None = "order_id", version: int = 1, base: type[Message] = Event, **fields: Any
) -> type[Message]:
    """The message payments.paid, an event, with these fields beside `order_id`."""
    all_fields = {"order_id": (int, ...)} | fields
    keywords = {"name": "payments.paid", "version": version, "key": key}
    return create_model("Paid", __base__=base, __cls_kwargs__=keywords, **all_fields)


def state_of(model: type[Message], root: Path) -> Finding:
    [finding] = check([model], root)
    return finding


def test_a_lock_file_has_its_place_by_owner_message_and_version(tmp_path: Path) -> None:
    [finding] = freeze([paid(version=3)], tmp_path)
    assert finding.path == tmp_path / "payments" / "paid" / "v3.json"
    assert finding.path.exists()


def test_a_message_with_a_long_name_keeps_it_under_its_owner(tmp_path: Path) -> None:
    class Deep(Event, name="a.b.c", version=1):
        pass

    assert lock_path(tmp_path, Deep) == tmp_path / "a" / "b.c" / "v1.json"


def test_a_lock_file_says_of_which_message_it_is() -> None:
    locked = lock(paid(currency=(str, "USD")))
    assert (locked["name"], locked["version"], locked["kind"], locked["key"], locked["status"]) == (
        "payments.paid",
        1,
        "event",
        "order_id",
        "active",
    )


def test_writer_and_reader_are_told_apart_where_they_differ() -> None:
    class Sum(Event, name="a.sum", version=1):
        one: int
        other: int = Field(validation_alias="read", serialization_alias="written")

        @computed_field
        @property
        def total(self) -> int:
            return self.one + self.other

    locked = lock(Sum)
    assert list(locked["writer"]["properties"]) == ["one", "total", "written"]
    assert list(locked["reader"]["properties"]) == ["one", "read"]


def test_whether_it_is_an_event_or_a_command_is_part_of_the_contract(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    finding = state_of(paid(base=Command), tmp_path)
    assert lock(paid())["hash"] != lock(paid(base=Command))["hash"]
    assert (finding.state, finding.detail) == (
        "changed",
        "the kind was 'event' and is 'command'",
    )


def test_what_is_written_has_every_field_and_what_is_read_may_lack_a_default() -> None:
    locked = lock(paid(currency=(str, "USD")))
    assert locked["writer"]["required"] == ["currency", "order_id"]
    assert locked["reader"]["required"] == ["order_id"]


def test_what_is_written_has_no_further_field_and_what_is_read_may_have_some() -> None:
    locked = lock(paid(inner=(Inner, ...)))
    assert locked["writer"]["additionalProperties"] is False
    assert locked["writer"]["$defs"]["Inner"]["additionalProperties"] is False
    assert "additionalProperties" not in json.dumps(locked["reader"])


def test_a_free_form_object_stays_open() -> None:
    written = lock(paid(meta=(dict[str, str], ...)))["writer"]["properties"]["meta"]
    assert written["additionalProperties"] == {"type": "string"}


def test_titles_descriptions_examples_and_order_do_not_count() -> None:
    class Plain(Event, name="a.b", version=1):
        one: int
        two: str = "x"
        three: int

    class Adorned(Event, name="a.b", version=1, title="Something else"):
        """Explained at length."""

        three: int
        two: str = Field("x", title="Two", description="The second.", examples=["y"])
        one: int

    assert lock(Plain)["hash"] == lock(Adorned)["hash"]


def test_a_field_named_like_a_keyword_counts() -> None:
    without = paid()
    for name in ("title", "description", "examples", "required", "default"):
        with_field = paid(**{name: (str, ...)})
        assert lock(with_field)["hash"] != lock(without)["hash"], name
        assert name in lock(with_field)["reader"]["properties"]
        retyped = paid(**{name: (int, ...)})
        assert lock(with_field)["hash"] != lock(retyped)["hash"], name


def test_a_default_is_kept_as_the_value_it_is() -> None:
    default = {"title": "kept", "description": "kept too"}
    locked = lock(paid(meta=(dict[str, str], default)))
    assert locked["reader"]["properties"]["meta"]["default"] == default


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text()
            | st.sampled_from(["title", "type", "$defs", "properties", "required", "default"]),
            inner,
        )
    ),
    max_leaves=15,
)
fields = st.dictionaries(
    st.text() | st.sampled_from(["title", "default", "required"]), st.just({"type": "string"})
)


@given(fields, st.lists(st.text()), documents)
def test_the_canonical_form_is_stable_and_never_changes_its_input(
    properties: dict[str, Any], required: list[str], default: Any
) -> None:
    schema = {"title": "T", "properties": properties, "required": required, "default": default}
    before = json.dumps(schema)
    once = canonical(schema)
    assert canonical(once) == once
    assert json.dumps(schema) == before
    assert once["properties"].keys() == properties.keys()
    assert once["default"] == default


@given(fields, st.randoms(use_true_random=False))
def test_the_order_of_keys_is_irrelevant(properties: dict[str, Any], random: Any) -> None:
    shuffled = list(properties.items())
    random.shuffle(shuffled)
    one, other = canonical({"properties": properties}), canonical({"properties": dict(shuffled)})
    assert json.dumps(one) == json.dumps(other)


def test_an_unfrozen_version_is_missing(tmp_path: Path) -> None:
    finding = state_of(paid(), tmp_path)
    assert finding.state == "missing"
    assert "run `eventmesh schema freeze`" in str(finding)


def test_what_was_frozen_is_frozen(tmp_path: Path) -> None:
    assert [finding.state for finding in freeze([paid()], tmp_path)] == ["frozen"]
    assert state_of(paid(), tmp_path).state == "frozen"


def test_freezing_again_writes_nothing(tmp_path: Path) -> None:
    [finding] = freeze([paid()], tmp_path)
    before = finding.path.stat()
    assert freeze([paid()], tmp_path) == []
    assert finding.path.stat() == before


def test_a_new_version_is_frozen_beside_the_old_one(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    freeze([paid(version=2, amount=(int, ...))], tmp_path)
    assert {path.name for path in tmp_path.rglob("*.json")} == {"v1.json", "v2.json"}
    assert state_of(paid(), tmp_path).state == "frozen"


class Inner(BaseModel):
    a: int


def other_inner() -> type[BaseModel]:
    class Inner(BaseModel):
        a: int
        b: int

    return Inner


@pytest.mark.parametrize(
    ("before", "after", "detail"),
    [
        ({}, {"fee": (int, ...)}, "field 'fee' is new"),
        ({"fee": (int, ...)}, {}, "field 'fee' is gone"),
        ({"fee": (int, ...)}, {"fee": (str, ...)}, "field 'fee' changed"),
        ({"fee": (int, ...)}, {"fee": (int, 0)}, "field 'fee' changed"),
        ({"fee": (int, 1)}, {"fee": (int, 2)}, "field 'fee' changed"),
        ({"fee": (int, ...)}, {"tax": (int, ...)}, "field 'tax' is new, field 'fee' is gone"),
        ({"inner": (Inner, ...)}, {"inner": (other_inner(), ...)}, "a nested definition changed"),
        ({}, {"key": None}, "the key was 'order_id' and is None"),
    ],
)
def test_a_changed_model_is_noticed_and_the_field_is_named(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], detail: str
) -> None:
    freeze([paid(**before)], tmp_path)
    finding = state_of(paid(**after), tmp_path)
    assert (finding.state, finding.detail) == ("changed", detail)


@pytest.mark.parametrize("side", ["writer", "reader", "name", "version", "kind", "key", "hash"])
def test_an_edited_lock_file_is_noticed(tmp_path: Path, side: str) -> None:
    [finding] = freeze([paid()], tmp_path)
    locked = json.loads(finding.path.read_text())
    locked[side] = {"type": "object"} if side in ("writer", "reader") else "edited"
    finding.path.write_text(json.dumps(locked))
    assert state_of(paid(), tmp_path).state == "broken"


def test_a_lock_file_in_another_layout_is_the_same(tmp_path: Path) -> None:
    [finding] = freeze([paid()], tmp_path)
    locked = json.loads(finding.path.read_text())
    finding.path.write_text(json.dumps(dict(reversed(locked.items())), separators=(",", ":")))
    assert state_of(paid(), tmp_path).state == "frozen"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"hash": 1}'])
def test_a_lock_file_that_cannot_be_read_is_broken_and_no_crash(
    tmp_path: Path, content: bytes
) -> None:
    path = lock_path(tmp_path, paid())
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    finding = state_of(paid(), tmp_path)
    assert finding.state == "broken"
    assert "cannot be read" in finding.detail


def test_freeze_never_rewrites_and_writes_nothing_when_one_has_changed(tmp_path: Path) -> None:
    class Fresh(Event, name="payments.fresh", version=1):
        pass

    [finding] = freeze([paid()], tmp_path)
    before = finding.path.read_bytes()
    with pytest.raises(Drift, match=r"field 'fee' is new .*raise its version by one"):
        freeze([Fresh, paid(fee=(int, ...))], tmp_path)
    assert finding.path.read_bytes() == before
    assert state_of(Fresh, tmp_path).state == "missing"


def test_missing_is_no_drift(tmp_path: Path) -> None:
    refuse_drift(check([paid()], tmp_path))


def test_drift_names_every_message_that_differs(tmp_path: Path) -> None:
    class Broken(Event, name="payments.broken", version=1):
        pass

    freeze([paid(), Broken], tmp_path)
    lock_path(tmp_path, Broken).write_text("")
    with pytest.raises(Drift, match=r"payments.paid v1: .*payments.broken v1: ") as caught:
        refuse_drift(check([paid(fee=(int, ...)), Broken], tmp_path))
    assert caught.value.exit_code == 4
