from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from eventmesh import Event
from eventmesh.contracts.locks.drift import schemas_of
from eventmesh.review.field_descriptions import fields, spell


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    sku: str
    count: int = 1


class Placed(Event, name="shop.placed", version=1):
    id: UUID
    amount: Decimal
    at: datetime
    color: Color
    kind: Literal["a"]
    lines: list[Line]
    first: Line | None = None
    notes: dict[str, int]
    size: int = Field(5, ge=1, lt=10)


def test_a_version_is_told_in_words() -> None:
    told = {field.name: field for field in fields(*schemas_of(Placed))}
    assert told.keys() == Placed.model_fields.keys()
    assert told["id"].type == "text (uuid)"
    assert told["amount"].type == "text (decimal number)"
    assert told["color"].type == 'one of "red", "blue"'
    assert told["kind"].type == '"a"'
    assert told["lines"].type == "list of object with sku, count"
    assert told["first"].type == "object with sku, count or null"
    assert told["notes"].type == "map of integer"
    assert told["size"].type == "integer (at least 1, less than 10)"
    assert (told["size"].required, told["size"].written, told["size"].default) == (False, True, "5")
    assert (told["id"].required, told["id"].default) == (True, None)


@pytest.mark.parametrize(
    "schema",
    [
        True, False, None, 5, [], {}, {"$ref": "#"}, {"$ref": 5}, {"$ref": "#/$defs/gone"},
        {"$ref": "http://example.org/x"}, {"type": 5}, {"type": []}, {"enum": 5}, {"anyOf": {}},
        {"properties": 5, "type": "object"}, {"items": {"$ref": "#"}, "type": "array"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "additionalProperties": {"$ref": "#"}},
    ],
)  # fmt: skip
def test_there_are_words_for_every_schema(schema: Any) -> None:
    root = schema if isinstance(schema, dict) else {}
    assert spell(schema, root)
