"""Verdicts on models agree with what the models do.

Each row of the table of changes is executed: messages of a compatible change are read, and the
witness of a breaking change is written by one model and rejected by the other.

The results are written to `build/model-changes.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    FilePath,
    SerializeAsAny,
    UrlConstraints,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic.json_schema import WithJsonSchema
from pydantic_core import from_json, to_json

from eventmesh.compat import Breaking, Compatible, Unknown
from eventmesh.compat.pydantic_models.comparison import (
    compare_model,
    compare_schemas,
    reader_schema,
    writer_schema,
    written,
)
from tests.schemas.model_changes import ROWS, OpenRight, Pet, Row, StrictPet, as_markdown, m

TABLE = Path(__file__).parents[2] / "build" / "model-changes.md"
CASES = [(row, direction) for row in ROWS for direction in ("backward", "forward")]


@pytest.fixture(scope="module")
def results() -> Iterator[dict[tuple[str, str], tuple[str, str]]]:
    """The verdict and what the model did, by change and direction; written to a file at the end."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    yield found
    if len(found) > len(CASES) // 2:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(as_markdown(found))


@pytest.mark.parametrize(
    ("row", "direction"), CASES, ids=[f"{row.change}: {direction}" for row, direction in CASES]
)
def test_the_verdict_agrees_with_what_the_models_do(
    row: Row, direction: str, results: dict[tuple[str, str], tuple[str, str]]
) -> None:
    writer, reader, truth = (
        (row.old, row.new, row.backward)
        if direction == "backward"
        else (row.new, row.old, row.forward)
    )
    verdict = compare_model(writer_schema(writer), reader, samples=written(writer, limit=8))
    if truth == "breaks":
        assert isinstance(verdict, Breaking)
        assert can_be_written(writer, verdict.witness)
        reason = rejection_by(reader, verdict.witness)
        assert reason
        did = f"rejected `{json.dumps(verdict.witness)}`: {reason}"
    else:
        assert isinstance(verdict, Unknown if row.may_be_unknown else Compatible), verdict
        messages = [*written(writer), *generated(writer)]
        assert messages
        for message in messages:
            assert rejection_by(reader, message) == "", message
        did = f"read {len(messages)} messages"
    results[row.change, direction] = (type(verdict).__name__, did)


def rejection_by(reader: type[BaseModel], message: Any) -> str:
    """Why the model does not read a message; empty if it does."""
    try:
        reader.model_validate_json(to_json(message))
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    except Exception as error:  # noqa: BLE001  # a validator of a test may raise anything
        return repr(error)
    return ""


def wire(model: type[BaseModel], value: BaseModel) -> Any:
    return from_json(value.model_dump_json(by_alias=True))


def can_be_written(writer: type[BaseModel], message: Any) -> bool:
    """Whether the model writes this message, given some input."""
    if message in written(writer):
        return True
    by_name = {
        name: message.get(field.serialization_alias or name)
        for name, field in writer.model_fields.items()
    }
    for inputs in (message, by_name, *({**message, "a": text} for text in ("0", "x"))):
        try:
            value = writer.model_validate_json(to_json(inputs), by_alias=True, by_name=True)
        except ValidationError:
            continue
        if wire(writer, value) == message:
            return True
    return False


@cache
def generated(writer: type[BaseModel]) -> list[Any]:
    """Messages that Hypothesis generates from the model's annotations, the same in each run."""
    messages: list[Any] = []

    @settings(
        max_examples=6,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries({n: inputs(f.annotation) for n, f in writer.model_fields.items()}))
    def add_message(values: dict[str, Any]) -> None:
        try:
            value = writer.model_validate(values, by_name=True, by_alias=False)
        except ValidationError:
            return
        message = wire(writer, value)
        if "NaN" not in repr(value) and "inf" not in repr(value):
            messages.append(message)

    if "Tree" in writer.__name__ or "Chain" in writer.__name__:
        return []  # takes Hypothesis very long
    try:
        add_message()
    except Exception:  # noqa: BLE001  # Hypothesis cannot generate this type
        return []
    return messages


def inputs(annotation: Any) -> st.SearchStrategy[Any]:
    floats = st.floats(allow_nan=False, allow_infinity=False)
    if annotation is float:
        return floats
    if annotation is Decimal:
        return st.decimals(allow_nan=False, allow_infinity=False)
    return st.from_type(annotation)


# Other properties of a verdict --------------------------------------------------------------------


class Order(BaseModel):
    number: int
    amount: Decimal
    lines: list[Line] = []


class Line(BaseModel):
    article: str
    count: int = 1


def test_a_model_is_compatible_with_itself() -> None:
    assert isinstance(compare_model(writer_schema(Order), Order), Compatible)


def test_a_witness_is_minimal() -> None:
    class NewLine(BaseModel):
        article: str
        count: Annotated[int, Field(le=99)]

    new = m(number=int, amount=Decimal, lines=list[NewLine])
    verdict = compare_model(writer_schema(Order), new)
    assert isinstance(verdict, Breaking)
    assert len(verdict.witness["lines"]) == 1
    assert verdict.witness["lines"][0]["article"] == ""
    assert "lines[].count" in verdict.reason


def test_a_change_names_the_field_of_the_model() -> None:
    verdict = compare_model(writer_schema(Order), m(number=str, amount=Decimal))
    assert isinstance(verdict, Breaking)
    assert verdict.changes[0].field == "number"
    assert verdict.changes[0].rule == "EM002"


def test_a_value_that_only_the_model_rejects_is_EM022() -> None:  # noqa: N802
    class Checked(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("must be even")
            return value

    verdict = compare_model(writer_schema(m(number=int)), Checked)
    assert isinstance(verdict, Breaking)
    assert verdict.changes[0].rule == "EM022"
    assert verdict.changes[0].field == "number"
    assert "must be even" in verdict.reason


def test_a_validator_that_rejects_nothing_is_listed_as_a_change() -> None:
    class Checked(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def unchanged(cls, value: int) -> int:
            return value

    verdict = compare_model(writer_schema(m(number=int)), Checked)
    assert isinstance(verdict, Compatible)
    assert [change.rule for change in verdict.changes] == ["EM022"]
    assert "unchanged" in verdict.changes[0].detail


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (str, lambda value: value in {"EUR", "USD"}),
        (str, lambda value: value != "forbidden"),
        (str, lambda value: len(value) <= 40),
        (str, lambda value: value == value.strip()),
        (str, lambda value: re.search("[0-9]{4}-X", value) is None),
        (int, lambda value: value != 666),
        (int, lambda value: -(2**31) <= value < 2**31),
        (Decimal, lambda value: value == round(value, 2)),
        (list[int], lambda value: len(value) <= 25),
        (list[int], lambda value: value == sorted(value)),
        (list[str], lambda value: len(set(value)) == len(value)),
        (dict[str, int], lambda value: "id" not in value),
        (datetime, lambda value: value.tzinfo is not None),
        (date, lambda value: value.weekday() < 5),
        (UUID, lambda value: value.version == 4),
    ],
)
def test_a_new_validator_is_found_by_the_values_in_its_code(
    kind: Any, check: Callable[[Any], bool]
) -> None:
    def checked(value: Any) -> Any:
        if not check(value):
            raise ValueError("is not accepted")
        return value

    verdict = compare_model(writer_schema(m(a=kind)), m(a=Annotated[kind, AfterValidator(checked)]))
    assert isinstance(verdict, Breaking)
    assert "is not accepted" in verdict.reason


def test_a_rejected_sample_is_breaking_even_if_the_schemas_are_compatible() -> None:
    class Checked(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def rare(cls, value: str) -> str:
            if hash(value) != hash(value) or sum(map(ord, value)) == 4711:
                raise ValueError("is rare")
            return value

    sample = {"text": chr(4711)}
    verdict = compare_model(writer_schema(m(text=str)), Checked, samples=[sample])
    assert isinstance(verdict, Breaking)
    assert "is rare" in verdict.reason


def test_a_narrower_reader_of_a_writer_with_a_validator_is_unknown_without_a_witness() -> None:
    class Before(BaseModel):
        code: str

        @field_validator("code")
        @classmethod
        def known(cls, value: str) -> str:
            if value not in ("A", "B"):
                raise ValueError("unknown")
            return value

    class After(BaseModel):
        code: Literal["A", "B"]

    frozen = writer_schema(Before)
    assert isinstance(compare_model(frozen, After), Unknown)
    assert isinstance(compare_model(frozen, After, writer_model=Before), Unknown)

    class Narrow(BaseModel):
        code: Literal["A"]

    assert isinstance(compare_model(frozen, Narrow), Unknown)
    verdict = compare_model(frozen, Narrow, samples=[{"code": "A"}, {"code": "B"}])
    assert isinstance(verdict, Breaking)
    assert verdict.witness == {"code": "B"}
    verdict = compare_model(frozen, Narrow, writer_model=Before)
    assert isinstance(verdict, Breaking)
    assert verdict.witness == {"code": "B"}


@pytest.mark.parametrize(
    "of",
    [lambda pet: pet, lambda pet: list[pet], lambda pet: pet | None],
    ids=["pet", "list", "optional"],
)
def test_a_field_that_is_written_as_any_subclass_is_unknown_to_a_reader_of_no_other_fields(
    of: Callable[[Any], Any],
) -> None:
    writer = m(a=of(SerializeAsAny[Pet]))
    frozen = writer_schema(writer)
    assert isinstance(compare_model(frozen, writer), Compatible)
    assert isinstance(compare_schemas(frozen, reader_schema(writer)), Compatible)
    assert isinstance(compare_model(frozen, m(a=of(Pet))), Compatible)
    assert isinstance(compare_model(frozen, m(a=of(StrictPet))), Unknown)
    assert isinstance(compare_schemas(frozen, reader_schema(m(a=of(StrictPet)))), Unknown)
    assert isinstance(compare_model(writer_schema(m(a=of(Pet))), m(a=of(StrictPet))), Compatible)


HOSTED = Annotated[AnyUrl, UrlConstraints(host_required=True)]
PYTHONS = ConfigDict(regex_engine="python-re")
WORD = Annotated[str, Field(pattern="^[a-z]+$")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(m(a=Annotated[bytes, Field(max_length=3)]),
                     m(a=Annotated[str, Field(max_length=3)]), id="length in bytes"),
        pytest.param(m(a=HOSTED), m(a=AnyUrl), id="host of a URL"),
        pytest.param(m(PYTHONS, a=WORD), m(a=WORD), id="regex engine"),
    ],
)  # fmt: skip
def test_what_no_keyword_says_is_compatible_only_while_it_does_not_change(
    before: type[BaseModel], after: type[BaseModel]
) -> None:
    frozen = writer_schema(before), reader_schema(before)
    assert isinstance(compare_model(frozen[0], before), Compatible)
    assert isinstance(compare_schemas(*frozen), Compatible)
    assert not isinstance(compare_schemas(writer_schema(after), frozen[1]), Compatible)


def short(values: Any) -> Any:
    if len(values) > 50:
        raise ValueError("is too long")
    return values


@pytest.mark.parametrize(
    "of",
    [
        lambda kind: Annotated[list[kind], AfterValidator(short)],
        lambda kind: SerializeAsAny[list[kind]],
    ],
    ids=["validator", "any subclass"],
)
def test_a_check_that_did_not_change_does_not_hide_what_changed_below_it(
    of: Callable[[Any], Any],
) -> None:
    class Line(BaseModel):
        count: int

    frozen = writer_schema(m(lines=of(Line)))

    assert isinstance(compare_model(frozen, m(lines=of(Line), note=(str, ""))), Compatible)

    class Line(BaseModel):  # type: ignore[no-redef]
        count: Annotated[int, Field(ge=5)]

    assert not isinstance(compare_model(frozen, m(lines=of(Line))), Compatible)


def test_a_cast_is_applied_before_the_model() -> None:
    old, new = m(cents=int), m(amount=Decimal)

    def cast(data: dict[str, Any]) -> dict[str, Any]:
        return {"amount": str(Decimal(data["cents"]) / 100)}

    assert isinstance(compare_model(writer_schema(old), new, cast=cast), Compatible)
    verdict = compare_model(writer_schema(old), new, cast=lambda data: {"amount": data["euros"]})
    assert isinstance(verdict, Breaking)
    assert verdict.witness == {"cents": 0}
    assert "KeyError" in verdict.reason


def test_a_cast_does_not_modify_the_witness() -> None:
    def cast(data: dict[str, Any]) -> dict[str, Any]:
        data.clear()
        return {}

    verdict = compare_model(writer_schema(m(a=int)), m(b=int), cast=cast)
    assert isinstance(verdict, Breaking)
    assert verdict.witness == {"a": 0}


def test_a_model_without_a_json_schema_has_a_verdict() -> None:
    class Thing:
        pass

    class Unusual(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: Thing

    verdict = compare_model(writer_schema(m(thing=str)), Unusual)
    assert isinstance(verdict, Breaking)


def test_a_schema_written_by_hand_counts_where_the_code_says_nothing() -> None:
    class Thing:
        pass

    config = ConfigDict(arbitrary_types_allowed=True)
    by_hand = Annotated[Thing, WithJsonSchema({"type": "string"})]
    assert reader_schema(m(config, a=by_hand))["properties"] == {"a": {"type": "string"}}


def test_an_unexpected_exception_of_a_validator_is_a_rejection() -> None:
    class Unusual(BaseModel):
        a: int

        @field_validator("a")
        @classmethod
        def check(cls, value: int) -> int:
            return value // value

    verdict = compare_model(writer_schema(m(a=int)), Unusual)
    assert isinstance(verdict, Breaking)
    assert verdict.witness == {"a": 0}
    assert "ZeroDivisionError" in verdict.reason


def test_the_writer_schema_is_closed_and_requires_every_field() -> None:
    schema = writer_schema(Order)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Line"]["additionalProperties"] is False
    assert set(schema["$defs"]["Line"]["required"]) == {"article", "count"}
    assert schema["properties"]["amount"]["pattern"]


class Small(BaseModel):
    count: Annotated[int, Field(gt=0)] = 0


@pytest.mark.parametrize(
    ("kind", "default", "witness"),
    [
        (str, None, {"a": None}),
        (str, Field(None, alias="a"), {"a": None}),
        (Annotated[int, Field(gt=0)], 0, {"a": 0}),
        (Literal["x", "y"], "z", {"a": "z"}),
        (list[int], None, {"a": None}),
        (m(b=int), None, {"a": None}),
        (Small, Small(), {"a": {"count": 0}}),
    ],
    ids=["null", "alias", "bound", "literal", "list", "model", "nested"],
)
def test_a_default_that_the_model_cannot_read_is_written_all_the_same(
    kind: Any, default: Any, witness: Any
) -> None:
    model = m(a=(kind, default))
    assert wire(model, model()) == witness
    verdict = compare_model(writer_schema(model), model, samples=written(model, limit=8))
    assert isinstance(verdict, Breaking)
    assert verdict.witness == witness
    verdict = compare_schemas(writer_schema(model), reader_schema(model))
    assert isinstance(verdict, Breaking)
    assert verdict.witness == witness


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        (str | None, None),
        (Decimal, 0),
        (Annotated[Decimal, Field(ge=0)], Decimal(0)),
        (AnyUrl, "http://example.com"),
        (date, "2026-01-31"),
        (int, Field(None, validate_default=True)),
        (Small | None, None),
        (Annotated[int, AfterValidator(lambda value: 1 // value)], 0),
    ],
    ids=["nullable", "decimal", "bounded-decimal", "url", "date", "validated", "model", "function"],
)
def test_a_default_that_can_be_read_makes_no_difference_to_the_schema(
    kind: Any, default: Any
) -> None:
    with_default = writer_schema(m(a=(kind, default)))
    with_default["properties"]["a"].pop("default")
    assert with_default == writer_schema(m(a=kind))


def test_a_frozen_reader_is_compared_by_its_schema() -> None:
    old, new = m(a=Annotated[Decimal, Field(ge=10)]), m(a=Annotated[Decimal, Field(ge=0)])
    assert isinstance(compare_schemas(writer_schema(old), reader_schema(new)), Compatible)
    verdict = compare_schemas(writer_schema(new), reader_schema(old))
    assert isinstance(verdict, Breaking)
    assert Decimal(verdict.witness["a"]) < 10


def bounded(kind: Any, **bounds: Any) -> Any:
    return Annotated[kind, Field(**bounds)]


@pytest.mark.parametrize(
    ("frozen", "now", "told"),
    [
        pytest.param(bounded(time, ge=time(9)), time, Breaking, id="time: ge removed"),
        pytest.param(bounded(date, ge=date(2020, 1, 1)), date, Breaking, id="date: ge removed"),
        pytest.param(bounded(timedelta, le=timedelta(1)), timedelta, Unknown,
                     id="timedelta: le removed"),
        pytest.param(timedelta, bounded(timedelta, le=timedelta(1)), Compatible,
                     id="timedelta: le added"),
        pytest.param(bounded(timedelta, le=timedelta(1)) | None,
                     bounded(timedelta, le=timedelta(1)) | None, Compatible,
                     id="timedelta: le unchanged"),
        pytest.param(bounded(float, ge=0), Decimal, Breaking, id="float from 0 to Decimal"),
        pytest.param(list[bounded(float, le=100)], list[bounded(Decimal, le=1000)], Breaking,
                     id="floats up to 100 to Decimals up to 1000"),
        pytest.param(bounded(float, multiple_of=0.5), Decimal, Breaking,
                     id="float multiple of 0.5 to Decimal"),
        pytest.param(bounded(int, ge=1) | None, bounded(Decimal, decimal_places=0) | None,
                     Breaking, id="optional int from 1 to Decimal"),
        pytest.param(bounded(int, gt=0), bounded(str, pattern="^[0-9]{1,5}$"), Breaking,
                     id="positive int to digits"),
        pytest.param(bounded(int, le=5), Literal["1", "9"], Breaking, id="int up to 5 to texts"),
        pytest.param(bounded(float, ge=0), bounded(Decimal, ge=0), Compatible,
                     id="float from 0 to Decimal from 0"),
        pytest.param(bounded(float, ge=0), bounded(Decimal, gt=5, le=10), Compatible,
                     id="float from 0 to Decimal of 5 to 10"),
        pytest.param(bounded(int, ge=0), bounded(str, pattern="^[0-9]{1,5}$"), Compatible,
                     id="int from 0 to digits"),
        pytest.param(bounded(int, ge=0) | str, str, Compatible, id="int from 0 or a text to text"),
        pytest.param(bounded(int, ge=0) | bounded(int, le=-9),
                     bounded(str, pattern="^-[1-9][0-9]$"), Compatible, id="one of two ranges"),
        pytest.param(FilePath, Path, Unknown, id="path of a file to any path"),
        pytest.param(list[FilePath | None], list[FilePath], Compatible, id="paths of files"),
        pytest.param(ByteSize, bounded(str, pattern="^[0-9]+[a-z]$"), Breaking,
                     id="size with a unit to another letter"),
        pytest.param(ByteSize, bounded(str, pattern="^[0-9]{1,3} ?([kK][bB]|MiB)?$"), Compatible,
                     id="size with a unit to such a text"),
        pytest.param(dict[bounded(int, gt=0), int], dict[int, int], Breaking,
                     id="positive keys to any whole number"),
        pytest.param(list[dict[bounded(float, gt=0), int]], list[dict[bounded(float, ge=0), int]],
                     Breaking, id="positive keys to keys from 0"),
        pytest.param(dict[bounded(Decimal, le=5), int], dict[Decimal, int], Breaking,
                     id="keys up to 5 to any Decimal"),
        pytest.param(dict[bounded(int, gt=0), int], dict[bounded(int, gt=5), int], Compatible,
                     id="positive keys to keys above 5"),
        pytest.param(dict[bounded(int, gt=0), dict[bounded(int, le=5), int]],
                     dict[bounded(int, gt=0), dict[bounded(int, le=9), int]], Breaking,
                     id="bounded keys below bounded keys"),
        pytest.param(dict[OpenRight, int], dict[bounded(int, ge=1, le=3), int], Breaking,
                     id="flags to numbers, as keys"),
        pytest.param(dict[OpenRight, int], dict[Literal["1", "2"], int], Compatible,
                     id="flags to their members, as keys"),
        pytest.param(float, Decimal, Compatible, id="float to Decimal"),
        pytest.param(bounded(Decimal, ge=0) | str, bounded(Decimal, ge=0) | str, Compatible,
                     id="Decimal or a text, unchanged"),
    ],
)  # fmt: skip
def test_a_service_with_the_frozen_version_keeps_its_bounds(
    frozen: Any, now: Any, told: type
) -> None:
    verdict = compare_schemas(writer_schema(m(a=now)), reader_schema(m(a=frozen)))
    assert isinstance(verdict, told), verdict
    if isinstance(verdict, Breaking):
        assert rejection_by(m(a=frozen), verdict.witness)


@pytest.mark.parametrize(
    "kind",
    [int, float, Decimal, bool, str, bytes, datetime, date, UUID, Literal[1, "x"], list[int],
     set[str], dict[int, str], dict[bool, int], tuple[int, str], int | None],
)  # fmt: skip
def test_pydantic_accepts_what_the_reader_schema_accepts(kind: Any) -> None:
    """A reader schema that is wider than its model would make proofs meaningless."""
    from eventmesh.compat import documents
    from eventmesh.compat.pydantic_models.schemas import plain

    model = create_model("Model", a=(kind, ...))
    for document in documents(plain(reader_schema(model)), limit=300):
        assert rejection_by(model, document) == "" or is_exempt(document), document


def is_exempt(document: Any) -> bool:
    """Numbers that pydantic converts to another type only within 64 bits."""
    return isinstance(document["a"], float) or "e+" in json.dumps(document)
