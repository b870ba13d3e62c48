"""Changes that people make to models, and whether the reader on the other side tolerates them.

Backward: the new model reads what the old one wrote. Forward: the old model reads what the new one
writes. Each row states what the models do when they are run, and the test runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import CONFORM, STRICT, Enum, Flag, IntEnum, IntFlag, StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar, Union
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    Base64Str,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    EmailStr,
    Field,
    HttpUrl,
    Json,
    PlainSerializer,
    PlainValidator,
    RootModel,
    SecretStr,
    SerializeAsAny,
    StringConstraints,
    ValidationInfo,
    WrapValidator,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema
from pydantic_core import core_schema
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

Truth = Literal["reads", "breaks"]
R: Truth = "reads"
B: Truth = "breaks"


@plain_dataclass(frozen=True)
class Row:
    """One change: the models before and after it, and whether readers break in each direction."""

    change: str
    old: type[BaseModel]
    new: type[BaseModel]
    backward: Truth
    forward: Truth
    may_be_unknown: bool = False
    """Whether the verdict is Unknown although the reader reads everything: the schema does not
    describe what is written."""


ROWS: list[Row] = []


def row(
    change: str,
    old: type[BaseModel],
    new: type[BaseModel],
    backward: Truth,
    forward: Truth,
    may_be_unknown: bool = False,
) -> None:
    assert change not in {known.change for known in ROWS}
    ROWS.append(Row(change, old, new, backward, forward, may_be_unknown))


def m(config: ConfigDict | None = None, **fields: Any) -> type[BaseModel]:
    """A model with these fields; a tuple is a type with its default."""
    definitions = {
        name: value if isinstance(value, tuple) else (value, ...) for name, value in fields.items()
    }
    return create_model("Message", __config__=config, **definitions)  # type: ignore[call-overload,no-any-return]


def of(
    old: Any, new: Any, change: str, backward: Truth, forward: Truth, may_be_unknown: bool = False
) -> None:
    """A row for a changed type of one field."""
    row(change, m(a=old), m(a=new), backward, forward, may_be_unknown)


# Fields ------------------------------------------------------------------------------------------

A = m(a=int)
row("no change", A, m(a=int), R, R)
row("required field added", A, m(a=int, b=str), B, R)
row("optional field added", A, m(a=int, b=(str, "x")), R, R)
row("optional nullable field added", A, m(a=int, b=(str | None, None)), R, R)
row(
    "field with default_factory added",
    A,
    m(a=int, b=(list[int], Field(default_factory=list))),
    R,
    R,
)
row("nullable field without default added", A, m(a=int, b=str | None), B, R)
row("required field removed", m(a=int, b=str), A, R, B)
row("field with default removed", m(a=int, b=(str, "x")), A, R, R)
row("field renamed", m(a=int, b=str), m(a=int, c=str), B, B)
row("field renamed, with a default", m(a=int, b=(str, "x")), m(a=int, c=(str, "x")), R, R)
row("field order changed", m(a=int, b=str), m(b=str, a=int), R, R)
row("renamed, old name as alias", m(a=int), m(b=(int, Field(alias="a"))), R, R)
row("alias added", m(a=int), m(a=(int, Field(alias="A"))), B, B)
row("validation_alias only", m(a=int), m(a=(int, Field(validation_alias="A"))), B, R)
row("serialization_alias only", m(a=int), m(a=(int, Field(serialization_alias="A"))), R, B)
row(
    "renamed with AliasChoices",
    m(a=int),
    m(b=(int, Field(validation_alias=AliasChoices("b", "a")))),
    R,
    B,
)
row(
    "AliasChoices without the old name",
    m(a=int),
    m(b=(int, Field(validation_alias=AliasChoices("b", "c")))),
    B,
    B,
)
row(
    "moved inside, read by AliasPath",
    m(box=m(a=int)),
    m(a=(int, Field(validation_alias=AliasPath("box", "a")))),
    R,
    B,
)
row(
    "first of a list by AliasPath",
    m(all=list[int]),
    m(a=(int, Field(validation_alias=AliasPath("all", 0)))),
    B,
    B,
)
row(
    "first of a list that has one, by AliasPath",
    m(all=Annotated[list[int], Field(min_length=1)]),
    m(a=(int, Field(validation_alias=AliasPath("all", 0)))),
    R,
    B,
)
row(
    "alias added with populate_by_name",
    m(a=int),
    m(ConfigDict(populate_by_name=True), a=(int, Field(alias="A"))),
    R,
    B,
)
row(
    "alias added with validate_by_name",
    m(a=int),
    m(ConfigDict(validate_by_name=True, validate_by_alias=True), a=(int, Field(alias="A"))),
    R,
    B,
)
row("extra=forbid", m(a=int), m(ConfigDict(extra="forbid"), a=int), R, R)
row(
    "extra=forbid, and a field removed",
    m(a=int, b=(int, 1)),
    m(ConfigDict(extra="forbid"), a=int),
    B,
    R,
)
row("extra=allow", m(ConfigDict(extra="allow"), a=int), m(a=int), R, R)
row(
    "extra=allow, and a field added",
    m(ConfigDict(extra="allow"), a=int),
    m(a=int, b=(int, 1)),
    B,
    R,
)

# Defaults and null -------------------------------------------------------------------------------

row("default added", m(a=int), m(a=(int, 1)), R, R)
row("default removed", m(a=(int, 1)), m(a=int), R, R)
row("default changed", m(a=(int, 1)), m(a=(int, 2)), R, R)
row("null allowed", m(a=int), m(a=int | None), R, B)
row("null allowed, with default", m(a=int), m(a=(int | None, None)), R, B)
row("null rejected", m(a=(int | None, None)), m(a=(int, 0)), B, R)
row("nullable list entries", m(a=list[int]), m(a=list[int | None]), R, B)
row("nullable nested model", m(a=m(b=int)), m(a=m(b=int) | None), R, B)
of(None, int | None, "None to Optional", R, B)

# Types -------------------------------------------------------------------------------------------

of(int, str, "int to str", B, B)
of(str, int, "str to int", B, B)
of(int, float, "int to float", R, B)
of(int, Decimal, "int to Decimal", R, B)
of(Decimal, float, "Decimal to float", R, R)
of(float, Decimal, "float to Decimal", R, R)
of(Decimal, str, "Decimal to str", R, B)
of(bool, int, "bool to int", R, B)
of(bool, str, "bool to str", B, B)
of(int, bool, "int to bool", B, R)
of(int, int | str, "int to int | str", R, B)
of(int | str, str | int, "union reordered", R, R)
of(int, list[int], "int to list[int]", B, B)
of(str, datetime, "str to datetime", B, R)
of(datetime, str, "datetime to str", R, B)
of(datetime, date, "datetime to date", B, R)
of(datetime, AwareDatetime, "datetime to AwareDatetime", B, R)
of(datetime, int, "datetime to int", B, B)
of(date, str, "date to str", R, B)
of(time, str, "time to str", R, B)
of(timedelta, str, "timedelta to str", R, B)
of(timedelta, float, "timedelta to float", B, B)
of(UUID, str, "UUID to str", R, B)
of(UUID, Annotated[str, Field(max_length=36)], "UUID to str of 36", R, B)
of(Base64Bytes, Base64Str, "base64 of bytes to base64 of text", B, R)
of(Base64Str, Base64Str, "base64 of text, unchanged", R, R)
of(bool, Annotated[int, Field(ge=0)], "bool to int from 0", R, B)
of(str, EmailStr, "str to EmailStr", B, R)
of(str, bytes, "str to bytes", R, R)
of(bytes, Base64Bytes, "bytes to base64", B, R)
of(str, AnyUrl, "str to AnyUrl", B, R)
of(AnyUrl, HttpUrl, "AnyUrl to HttpUrl", B, R)
of(str, Path, "str to Path", R, R)
of(str, IPv4Address, "str to IPv4Address", B, R)
of(str, SecretStr, "str to SecretStr", R, R)
of(str, Json[int], "str to Json[int]", B, B)
of(Json[Any], Json[Any], "Json, unchanged", B, B)
of(int, Any, "int to Any", R, B)
of(Any, object, "Any to object", R, R)
of(int, Annotated[int, Field(strict=True)], "strict int", R, R)
of(Decimal, Annotated[Decimal, Field(strict=True)], "strict Decimal", R, R)
of(datetime, Annotated[datetime, Field(strict=True)], "strict datetime", R, R)
of(date, Annotated[datetime, Field(strict=True)], "date to strict datetime", B, B)
of(date, datetime, "date to datetime", R, B)
of(bool, Annotated[int, Field(strict=True)], "bool to strict int", B, B)
of(Decimal, Annotated[float, Field(strict=True)], "Decimal to strict float", B, R)
row(
    "strict model",
    m(a=int, b=datetime, c=UUID),
    m(ConfigDict(strict=True), a=int, b=datetime, c=UUID),
    R,
    R,
)
row("strict model, bool to int", m(a=bool), m(ConfigDict(strict=True), a=int), B, B)
row("numbers coerced to str", m(a=int), m(ConfigDict(coerce_numbers_to_str=True), a=str), R, B)
row(
    "bytes as base64 in JSON",
    m(a=bytes),
    m(ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"), a=bytes),
    B,
    R,
)
row(
    "timedelta as seconds",
    m(a=timedelta),
    m(ConfigDict(ser_json_timedelta="float"), a=timedelta),
    R,
    R,
)

in_milliseconds = m(ConfigDict(ser_json_temporal="milliseconds"), a=date)
row("date in milliseconds", in_milliseconds, in_milliseconds, R, R)
row("date in milliseconds from now on", m(a=date), in_milliseconds, R, R)

with_nan = ConfigDict(ser_json_inf_nan="strings")
row("NaN as text", m(with_nan, a=float), m(with_nan, a=float, b=(int, 0)), R, R)
row("NaN as text to Decimal", m(with_nan, a=float), m(a=Decimal), B, R)

# Collections -------------------------------------------------------------------------------------

of(list[int], set[int], "list to set", R, R)
of(list[int], frozenset[int], "list to frozenset", R, R)
of(list[int], tuple[int, ...], "list to variadic tuple", R, R)
of(list[int], tuple[int, int], "list to pair", B, R)
of(tuple[int, int], tuple[int, int, int], "pair to triple", B, B)
of(tuple[int, str], tuple[str, int], "tuple reordered", B, B)
of(tuple[int, str], list[int | str], "tuple to list of union", R, B)
of(list[int], Annotated[set[int], Field(min_length=2)], "list to set of at least two", B, R)
of(
    Annotated[list[int], Field(min_length=2)],
    Annotated[set[int], Field(min_length=2)],
    "list of two to set of two",
    B,
    R,
)
of(
    Annotated[set[int], Field(min_length=2)],
    Annotated[frozenset[int], Field(min_length=2)],
    "set of two to frozenset of two",
    R,
    R,
)
of(list[int], list[str], "list[int] to list[str]", B, B)
of(list[int], Annotated[list[int], Field(max_length=3)], "list bounded", B, R)
of(list[int], Annotated[list[int], Field(min_length=1)], "list must not be empty", B, R)
of(dict[str, int], dict[str, float], "dict of int to dict of float", R, B)
of(dict[str, int], dict[int, int], "dict keys str to int", B, R)
of(dict[int, str], dict[int, str], "dict with int keys, unchanged", R, R)
of(dict[UUID, int], dict[str, int], "dict keys UUID to str", R, B)
of(dict[str, int], m(a=int), "dict to model", B, R)
of(
    dict[Annotated[str, Field(pattern="^[a-z]$")], int],
    dict[Annotated[str, Field(pattern="^[a-z]+$")], int],
    "dict keys of a wider pattern",
    R,
    B,
)
of(dict[str, Any], dict[str, int], "dict of Any to dict of int", B, R)
of(dict[str, int], dict[Literal["x", "y"], int], "dict keys narrowed", B, R)

# Literals and enumerations -----------------------------------------------------------------------


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class MoreColors(StrEnum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class PlainColor(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class MoreLevels(IntEnum):
    LOW = 1
    HIGH = 2
    HIGHEST = 3


class Right(Flag):
    READ = 1
    WRITE = 2


class MoreRights(Flag):
    READ = 1
    WRITE = 2
    DELETE = 4


class OpenRight(IntFlag):
    READ = 1
    WRITE = 2


class ConformingRight(Flag, boundary=CONFORM):
    READ = 1
    WRITE = 2


class SparseRight(IntFlag, boundary=STRICT):
    READ = 1
    DELETE = 4


class MoreSparseRights(IntFlag, boundary=STRICT):
    READ = 1
    DELETE = 4
    SHARE = 16


class OpenColor(StrEnum):
    RED = "red"
    BLUE = "blue"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> OpenColor:
        return cls.OTHER


of(Literal["a", "b"], Literal["a"], "Literal narrowed", B, R)
of(Literal["a"], Literal["b"], "Literal changed", B, B)
of(Literal["a"], str, "Literal to str", R, B)
of(Literal[1], Literal[True], "Literal 1 to True", R, R)
of(Color, MoreColors, "enum value added", R, B)
of(Color, PlainColor, "StrEnum to Enum", R, R)
of(Color, Literal["red", "blue"], "enum to Literal", R, R)
of(MoreColors | str, Color | str, "open enum (Enum | str), value removed", R, R)
of(MoreColors, OpenColor, "enum with _missing_", R, B)
of(Level, MoreLevels, "IntEnum value added", R, B)
of(Level, int, "IntEnum to int", R, B)
of(Right, MoreRights, "Flag member added", R, B)
of(Right, Annotated[int, Field(ge=0, le=3)], "Flag to int", R, R)
of(Annotated[int, Field(ge=0, le=2)], Right, "int to Flag", R, B)
of(Right, Literal[1, 2], "Flag to the values of its members", B, R)
of(Right, OpenRight, "Flag to IntFlag, which keeps unknown bits", R, B)
of(SparseRight, SparseRight, "Flag with gaps between its bits", R, R)
of(SparseRight, MoreSparseRights, "member added to a Flag with gaps", R, B)
of(Right, ConformingRight, "Flag that drops unknown bits", R, R)
of(Color, str, "enum to str", R, B)
of(list[Color], set[MoreColors], "list of enum to set of wider enum", R, B)

# Bounds ------------------------------------------------------------------------------------------


def bounded(kind: Any, **bounds: Any) -> Any:
    return Annotated[kind, Field(**bounds)]


of(bounded(int, ge=0), bounded(int, ge=1), "ge raised", B, R)
of(bounded(int, gt=0), bounded(int, ge=1), "gt 0 to ge 1", R, R)
of(bounded(int, le=10), bounded(int, le=9), "le lowered", B, R)
of(bounded(int, lt=10), bounded(int, le=9), "lt 10 to le 9", R, R)
of(bounded(float, lt=10), bounded(float, le=9), "lt 10 to le 9, of float", B, R)
of(dict[bounded(int, gt=0), int], dict[int, int], "gt removed, of keys", R, B)
of(dict[bounded(int, gt=0), int], dict[bounded(int, gt=0), int], "gt unchanged, of keys", R, R)
of(dict[bounded(float, ge=0), int], dict[bounded(float, gt=0), int], "ge 0 to gt 0, of keys", B, R)
of(dict[bounded(Decimal, le=5), int], dict[Decimal, int], "Decimal: le removed, of keys", R, B)
of(dict[bounded(int, multiple_of=5), int], dict[bounded(int, multiple_of=10), int],
   "multiple_of 5 to 10, of keys", B, R)  # fmt: skip
of(dict[bounded(int, gt=0) | bool, int], dict[int | bool, int], "gt removed, of keys in a union",
   R, B)  # fmt: skip
of(int, bounded(int, multiple_of=5), "multiple_of added", B, R)
of(bounded(int, multiple_of=10), bounded(int, multiple_of=5), "multiple_of 10 to 5", R, B)
of(bounded(Decimal, ge=0), bounded(Decimal, ge=10), "Decimal: ge raised", B, R)
of(bounded(Decimal, gt=0), bounded(Decimal, gt=0), "Decimal: gt unchanged", R, R)
of(bounded(Decimal, gt=0), bounded(Decimal, ge=0), "Decimal: gt 0 to ge 0", R, B)
of(bounded(Decimal, le=1000), bounded(Decimal, le=100), "Decimal: le lowered", B, R)
of(Decimal, bounded(Decimal, max_digits=5, decimal_places=2), "Decimal: digits bounded", B, R)
of(
    bounded(Decimal, max_digits=5, decimal_places=2),
    bounded(Decimal, max_digits=7, decimal_places=2),
    "Decimal: more digits",
    R,
    B,
)
of(
    bounded(Decimal, decimal_places=3),
    bounded(Decimal, decimal_places=2),
    "Decimal: fewer places",
    B,
    R,
)
of(
    bounded(Decimal, max_digits=5, decimal_places=2),
    bounded(Decimal, max_digits=5, decimal_places=3),
    "Decimal: another position of the point",
    B,
    B,
)
of(float, bounded(Decimal, decimal_places=2), "float to Decimal with two places", B, R)
day = timedelta(days=1)
of(timedelta, bounded(timedelta, le=day), "timedelta: le added", B, R)
of(bounded(timedelta, le=7 * day), bounded(timedelta, le=day), "timedelta: le lowered", B, R)
of(bounded(timedelta, ge=day), bounded(timedelta, ge=day), "timedelta: ge unchanged", R, R)
of(time, bounded(time, ge=time(8)), "time: ge added", B, R)
of(bounded(time, ge=time(8)), bounded(time, ge=time(9)), "time: ge raised", B, R)
of(str, bounded(str, max_length=5), "max_length added", B, R)
of(str, bounded(str, min_length=1), "min_length added", B, R)
of(bounded(str, max_length=5), bounded(str, max_length=6), "max_length raised", R, B)
of(str, bounded(str, pattern="^[A-Z]{3}$"), "pattern added", B, R)
of(bounded(str, pattern="^[A-Z]{3}$"), bounded(str, pattern="^[A-Z]+$"), "pattern widened", R, B)
of(
    bounded(str, pattern="^[A-Z]{3}$"),
    bounded(str, min_length=3, max_length=3),
    "pattern to length",
    R,
    B,
)
of(bounded(int, ge=0), Annotated[int, Field(gt=-1)], "ge 0 to gt -1, annotated", R, R)
of(
    list[bounded(int, ge=0)],
    bounded(list[int], min_length=0),
    "constraint moved from entries to list",
    R,
    B,
)
of(
    str,
    Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
    "stripped and not empty",
    B,
    R,
)
of(
    Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
    Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
    "stripped and not empty, unchanged",
    R,
    R,
)

# Validators and serializers ----------------------------------------------------------------------


class Amount(BaseModel):
    amount: int


class AfterField(BaseModel):
    amount: int

    @field_validator("amount")
    @classmethod
    def not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must not be negative")
        return value


class AfterFieldToo(BaseModel):
    """The same model in another release, with the same validator."""

    amount: int

    @field_validator("amount")
    @classmethod
    def not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must not be negative")
        return value


class AfterFieldAndMore(BaseModel):
    amount: int
    note: str = ""

    @field_validator("amount")
    @classmethod
    def not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must not be negative")
        return value


class NotThirteen(BaseModel):
    amount: int

    @field_validator("amount")
    @classmethod
    def lucky(cls, value: int) -> int:
        assert value != 1313, "is unlucky"
        return value


class RoundsDown(BaseModel):
    amount: int

    @field_validator("amount")
    @classmethod
    def rounded(cls, value: int) -> int:
        return value - value % 10


class BeforeField(BaseModel):
    amount: int

    @field_validator("amount", mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        return int(value.removeprefix("EUR ")) if isinstance(value, str) else value


class AmountText(BaseModel):
    amount: Annotated[str, Field(pattern="^EUR [0-9]{1,9}$")]


class WrapField(BaseModel):
    amount: int

    @field_validator("amount", mode="wrap")
    @classmethod
    def lenient(cls, value: Any, handler: Any) -> int:
        try:
            return int(handler(value))
        except ValueError:
            return 0


class PlainField(BaseModel):
    amount: int

    @field_validator("amount", mode="plain")
    @classmethod
    def only_text(cls, value: Any) -> int:
        if not isinstance(value, str):
            raise ValueError("must be a text")
        return int(value)


class Span(BaseModel):
    start: int
    end: int


class OrderedSpan(BaseModel):
    start: int
    end: int

    @model_validator(mode="after")
    def in_order(self) -> OrderedSpan:
        if self.start > self.end:
            raise ValueError("start must not be after end")
        return self


class OrderedSpanToo(BaseModel):
    start: int
    end: int
    note: str = ""

    @model_validator(mode="after")
    def in_order(self) -> OrderedSpanToo:
        if self.start > self.end:
            raise ValueError("start must not be after end")
        return self


class Flat(BaseModel):
    city: str


class Nested(BaseModel):
    class Address(BaseModel):
        city: str

    address: Address

    @model_validator(mode="before")
    @classmethod
    def nest(cls, data: Any) -> Any:
        if isinstance(data, dict) and "city" in data:
            return {"address": {"city": data["city"]}}
        return data


class WithTotal(BaseModel):
    amount: int

    @computed_field
    def total(self) -> int:
        return self.amount * 2


class TotalRead(BaseModel):
    amount: int
    total: int


class AsText(BaseModel):
    amount: int

    @field_serializer("amount")
    def written(self, value: int) -> str:
        return f"{value} EUR"


class AsNumberText(BaseModel):
    amount: int

    @field_serializer("amount")
    def written(self, value: int) -> str:
        return str(value)


class TwoPlaces(BaseModel):
    amount: Decimal

    @field_serializer("amount")
    def written(self, value: Decimal) -> str:
        return f"{value:.2f}"


class TwoPlacesToo(BaseModel):
    amount: Decimal
    note: str = ""

    @field_serializer("amount")
    def written(self, value: Decimal) -> str:
        return f"{value:.2f}"


class Currency(BaseModel):
    currency: str


class CurrencyMatching(BaseModel):
    currency: str

    @field_validator("currency")
    @classmethod
    def known(cls, value: str) -> str:
        if not re.fullmatch("[A-Z]{3}", value):
            raise ValueError("must be three capitals")
        return value


class Bounds(BaseModel):
    low: int
    high: int


class InfoBounds(BaseModel):
    low: int
    high: int

    @field_validator("high")
    @classmethod
    def above(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("low", value):
            raise ValueError("must not be below low")
        return value


def positive(value: int) -> int:
    if value <= 0:
        raise ValueError("must be positive")
    return value


def split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def or_zero(value: Any, handler: Callable[[Any], int]) -> int:
    return 0 if value is None else handler(value)


row("field_validator added (after)", Amount, AfterField, B, R)
row("field_validator unchanged", AfterField, AfterFieldToo, R, R)
row("field_validator unchanged, field added", AfterField, AfterFieldAndMore, R, R)
row("field_validator for one value", Amount, NotThirteen, B, R)
row("field_validator that only converts", Amount, RoundsDown, R, R)
row("field_validator added (before), text read too", Amount, BeforeField, R, R)
row("text to number, read by a before validator", AmountText, BeforeField, R, B)
row("field_validator added (wrap), accepts anything", m(amount=str), WrapField, R, B)
row("field_validator added (plain)", Amount, PlainField, B, R)
row("validator of a pattern", Currency, CurrencyMatching, B, R)
row("validator across fields (info.data)", Bounds, InfoBounds, B, R)
row("model_validator added (after)", Span, OrderedSpan, B, R)
row("model_validator unchanged, field added", OrderedSpan, OrderedSpanToo, R, R)
row("model_validator added (before), reshapes", Flat, Nested, R, B)
of(int, Annotated[int, AfterValidator(positive)], "AfterValidator", B, R)
of(str, Annotated[list[str], BeforeValidator(split)], "BeforeValidator splits a text", R, B)
of(int | None, Annotated[int, WrapValidator(or_zero)], "WrapValidator accepts null", R, R)
of(
    int,
    Annotated[Any, PlainValidator(lambda value: value)],
    "PlainValidator accepts anything",
    R,
    B,
)
row("computed_field added", Amount, WithTotal, R, R)
row("computed_field becomes a field", WithTotal, TotalRead, R, R)
row("computed_field removed, still read", TotalRead, Amount, R, B)
row("field_serializer changes the type", Amount, AsText, R, B)
row(
    "field_serializer to a text of digits",
    m(amount=int),
    m(
        amount=Annotated[
            int, PlainSerializer(str, return_type=Annotated[str, Field(pattern="^-?[0-9]+$")])
        ]
    ),
    R,
    R,
)
row("field_serializer unchanged, field added", TwoPlaces, TwoPlacesToo, R, R)
row("serializer that its own model cannot read", AsText, AsText, B, B)

# Schemas written by hand --------------------------------------------------------------------------

optional_in_secret = int | SkipJsonSchema[None]
row("null shown by no schema", A, m(a=(optional_in_secret, None)), R, B)
row("null shown by no schema, unchanged", m(a=(optional_in_secret, None)),
    m(a=(optional_in_secret, None), b=(int, 0)), R, R)  # fmt: skip
row("field shown by no schema added", A, m(a=int, b=SkipJsonSchema[str]), B, R)
row("field shown by no schema retyped", m(a=SkipJsonSchema[int]), m(a=SkipJsonSchema[date]), B, B)
row(
    "enum written by hand to Literal",
    m(a=(str, Field(json_schema_extra={"enum": ["EUR", "USD"]}))),
    m(a=Literal["EUR", "USD"]),
    B,
    R,
)
row(
    "limit written by hand to le",
    m(ConfigDict(json_schema_extra={"properties": {"a": {"maximum": 5}}}), a=int),
    m(a=Annotated[int, Field(le=5)]),
    B,
    R,
)
of(Annotated[str, WithJsonSchema({"format": "date"})], date, "format written by hand", B, R)

# Structures --------------------------------------------------------------------------------------


def deep(leaf: Any) -> type[BaseModel]:
    return m(a=m(b=list[m(c=leaf)]))


row("nested at depth 3: type", deep(int), deep(str), B, B)
row("nested at depth 3: optional field", deep(m(d=int)), deep(m(d=int, e=(int, 0))), R, R)
row("nested at depth 3: required field", deep(m(d=int)), deep(m(d=int, e=int)), B, R)


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class NamedTree(BaseModel):
    value: int
    children: list[NamedTree] = []
    name: str = ""


class StrictTree(BaseModel):
    value: Annotated[int, Field(ge=0)]
    children: list[StrictTree] = []


class Chain(BaseModel):
    value: int
    next: Chain | None = None


class ShortChain(BaseModel):
    value: int
    next: None = None


row("recursive model, field added", Tree, NamedTree, R, R)
row("recursive model, bound added", Tree, StrictTree, B, R)
row("recursion removed", Chain, ShortChain, B, R)


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class Cash(BaseModel):
    kind: Literal["cash"]


class Voucher(BaseModel):
    kind: Literal["voucher"] = "voucher"
    code: str


class Coins(BaseModel):
    kind: Literal["coins"]


def tagged(*kinds: Any) -> Any:
    return Annotated[Union[kinds], Field(discriminator="kind")]  # noqa: UP007


of(tagged(Card, Cash), tagged(Card, Cash, Voucher), "discriminated union: member added", R, B)
of(tagged(Card, Cash), tagged(Card, Coins), "discriminated union: tag renamed", B, B)
of(tagged(Card, Cash), tagged(Cash, Card), "discriminated union reordered", R, R)
of(tagged(Card, Cash), Card | Cash, "discriminated union to smart union", R, R)
of(tagged(Card, Cash), Card, "union member to model", B, R)
of(Card | Cash, Card | Cash | str, "union: member added", R, B)


class Pet(BaseModel):
    name: str


class StrictPet(BaseModel, extra="forbid"):
    name: str


row("any subclass, field added", m(a=SerializeAsAny[Pet]), m(a=SerializeAsAny[Pet], b=(int, 0)),
    R, R)  # fmt: skip
row("any subclass in a list, field added", m(a=list[SerializeAsAny[Pet]]),
    m(a=list[SerializeAsAny[Pet]], b=(int, 0)), R, R)  # fmt: skip

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]
    total: int


class Names(RootModel[list[str]]):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Point3(NamedTuple):
    x: int
    y: int
    z: int = 0


class Options(TypedDict):
    speed: int


class MoreOptions(TypedDict):
    speed: int
    color: NotRequired[str]


class StrictOptions(TypedDict):
    speed: int
    color: str


@dataclass
class Money:
    amount: int
    currency: str = "EUR"


@dataclass
class MoneyNow:
    amount: int
    currency: str


class Celsius:
    """A user's own type that tells pydantic how to read it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            above_zero, core_schema.float_schema(), serialization=core_schema.to_string_ser_schema()
        )


def above_zero(value: float) -> float:
    if value < -273.15:
        raise ValueError("is below absolute zero")
    return value


of(Page[int], Page[int], "generic model, unchanged", R, R)
of(Page[int], Page[str], "generic model of another type", B, B)
of(list[str], Names, "RootModel inside", R, R)
of(Names, list[int], "RootModel to another list", B, B)
of(Point, Point3, "NamedTuple: optional entry added", R, B)
of(Point, tuple[int, int], "NamedTuple to tuple", R, R)
of(Options, MoreOptions, "TypedDict with NotRequired", R, R)
of(Options, StrictOptions, "TypedDict: required key added", B, R)
of(StrictOptions, MoreOptions, "TypedDict: key no longer required", R, B)
of(Money, MoneyNow, "dataclass: default removed", R, R)
of(m(amount=int), Money, "model to dataclass", R, R)
of(m(amount=int), MoneyNow, "model to dataclass with another field", B, R)
of(float, Celsius, "custom type by __get_pydantic_core_schema__", B, R, may_be_unknown=True)


def as_markdown(results: dict[tuple[str, str], tuple[str, str]]) -> str:
    """The results as a table: the verdict and what the model did, by change and direction."""
    lines = ["| change | direction | verdict | what the executed model did |", "|---|---|---|---|"]
    for known in ROWS:
        for direction in ("backward", "forward"):
            verdict, did = results.get((known.change, direction), ("", ""))
            cells = (known.change, direction, verdict, did)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
