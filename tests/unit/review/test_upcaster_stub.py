from __future__ import annotations

from typing import Any

import pytest

from eventmesh.review.repair.upcaster_stub import step_between, upcaster


def an_object(required: list[str], **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required}


UNUSUAL = "\"'\n\u2028\ud800"
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


class Model:
    @staticmethod
    def upcaster(*, from_version: int) -> Any:
        return lambda function: function


def stub_between(writer: dict[str, Any], reader: dict[str, Any]) -> Any:
    """The function that the generated stub defines."""
    names: dict[str, Any] = {"Model": Model}
    lines = upcaster("Model", "shop.sold", 1, step_between(writer, reader))
    exec("\n".join(lines), names)  # noqa: S102  # the text that a user would import
    return names["sold_from_version_1"]


def test_a_removed_field_is_dropped_and_the_stub_is_complete() -> None:
    old, new = an_object(["id", "note"], id=TEXT, note=TEXT), an_object(["id"], id=TEXT)
    assert step_between(old, new).is_complete
    data = {"id": "1", "note": "x"}
    assert stub_between(old, new)(data) == {"id": "1"}
    assert data == {"id": "1", "note": "x"}


def test_an_added_optional_field_needs_no_code() -> None:
    old, new = an_object(["id"], id=TEXT), an_object(["id"], id=TEXT, note=TEXT)
    assert stub_between(old, new)({"id": "1"}) == {"id": "1"}


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (an_object(["id"], id=TEXT), an_object(["id", "new"], id=TEXT, new=TEXT), "new"),
        (an_object(["id"], id=TEXT), an_object(["id"], id=NUMBER), "id"),
        (an_object([], id=TEXT), an_object(["id"], id=TEXT), "id"),
        (an_object([]), an_object([UNUSUAL], **{UNUSUAL: TEXT}), "\\ud800"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_derived_raises_not_implemented(
    old: Any, new: Any, name: str
) -> None:
    assert not step_between(old, new).is_complete
    with pytest.raises(NotImplementedError) as caught:
        stub_between(old, new)({"id": "1"})
    assert name in ascii(str(caught.value)).replace("\\\\", "\\")


def test_a_removed_field_of_the_same_type_is_suggested_as_renamed() -> None:
    old, new = an_object(["total"], total=NUMBER), an_object(["amount"], amount=NUMBER)
    lines = "\n".join(upcaster("Model", "shop.sold", 1, step_between(old, new)))
    assert 'data["total"]' in lines


def test_a_change_in_a_definition_is_a_change_of_the_field_that_refers_to_it() -> None:
    part = {"$ref": "#/$defs/Part"}
    old = an_object(["part"], part=part) | {"$defs": {"Part": an_object(["x"], x=NUMBER)}}
    new = an_object(["part"], part=part) | {"$defs": {"Part": an_object(["x"], x=TEXT)}}
    assert [name for name, _ in step_between(old, new).asked] == ["part"]
    assert step_between(old, old).is_complete
