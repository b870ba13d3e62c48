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
from eventmesh.review.field_descriptions import describe_fields, describe_type


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


def test_fields_have_a_type_in_words_and_a_default() -> None:
    described = {field.name: field for field in describe_fields(*schemas_of(Placed))}
    assert described.keys() == Placed.model_fields.keys()
    assert described["id"].type == "string (uuid)"
    assert described["amount"].type == "string (decimal)"
    assert described["color"].type == 'one of "red", "blue"'
    assert described["kind"].type == '"a"'
    assert described["lines"].type == "list of object with sku, count"
    assert described["first"].type == "object with sku, count or null"
    assert described["notes"].type == "map of integer"
    assert described["size"].type == "integer (at least 1, less than 10)"
    assert (described["size"].required, described["size"].written, described["size"].default) == (
        False,
        True,
        "5",
    )
    assert (described["id"].required, described["id"].default) == (True, None)


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
def test_every_schema_even_an_invalid_one_has_a_description(schema: Any) -> None:
    root = schema if isinstance(schema, dict) else {}
    assert describe_type(schema, root)
