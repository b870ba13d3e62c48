"""A frozen version is not "as frozen" any more when one of its validators does something else."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventmesh.compat import Breaking, Compatible, Unknown
from eventmesh.compat.pydantic_models.comparison import (
    compare_model,
    compare_schemas,
    reader_schema,
    writer_schema,
)
from eventmesh.compat.pydantic_models.functions import fingerprint
from eventmesh.contracts.locks.drift import check
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_file import seal
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.message import Message

Load = Callable[[str], Any]

HEAD = """\
import functools
import re
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

from pydantic import BaseModel, field_validator

from eventmesh import Event


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Limits:
    most: int


class Bounds(BaseModel):
    most: int


class Opaque: ...


class Other: ...


def low(value): return value < 5


def high(value): return value > 5


"""

PLACED = """\
class Placed(Event, name="shop.placed", version=1):
    amount: int
    {more}
    @field_validator("amount")
    @classmethod
    def check(cls, v: int) -> int:
        {body}
        return v
"""
BODY = """\
if v < 0:
            v = -v
            if v > LIMIT:
                raise ValueError("too  large")"""
DEDENTED = """\
if v < 0:
            v = -v
        if v > LIMIT:
            raise ValueError("too  large")"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Imports a text as a module of its own."""
    numbers = itertools.count()

    def load(text: str) -> Any:
        path = tmp_path / f"module_{next(numbers)}.py"
        path.write_text(HEAD + text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def digest(module: Any) -> str:
    return fingerprint(module.check).partition(".")[2]


def with_limit(value: str) -> str:
    return f"LIMIT = {value}\ndef check(value):\n    return LIMIT\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Decimal(1000)", "Decimal(500)"),
        ("Decimal(1000)", "1000"),
        ("date(2030, 1, 1)", "date(2026, 1, 1)"),
        ("datetime(2030, 1, 1)", "datetime(2030, 1, 1, tzinfo=timezone.utc)"),
        ("time(8)", "time(9)"),
        ("timedelta(1)", "timedelta(2)"),
        ("uuid.UUID(int=1)", "uuid.UUID(int=2)"),
        ("Colour.RED", "Colour.BLUE"),
        ("Path('a')", "Path('b')"),
        ("b'a'", "b'b'"),
        ("1j", "2j"),
        ("{Decimal(1), Decimal(2)}", "{Decimal(1), Decimal(3)}"),
        ("{'a': [Decimal(1)]}", "{'a': [Decimal(2)]}"),
        ("deque([1])", "deque([2])"),
        ("re.compile('a')", "re.compile('a', re.IGNORECASE)"),
        ("Limits(1)", "Limits(2)"),
        ("SimpleNamespace(most=1)", "SimpleNamespace(most=2)"),
        ("MappingProxyType({'most': 1})", "MappingProxyType({'most': 2})"),
        ("Bounds(most=1)", "Bounds(most=2)"),
        ("functools.partial(pow, 2)", "functools.partial(pow, 3)"),
        ("functools.lru_cache(low)", "functools.lru_cache(high)"),
        ("Opaque()", "Other()"),
        ("[int]", "[str]"),
    ],
)
def test_another_value_that_a_validator_looks_up_is_another_validator(
    load: Load, before: str, after: str
) -> None:
    assert digest(load(with_limit(before))) == digest(load(with_limit(before)))
    assert digest(load(with_limit(before))) != digest(load(with_limit(after)))


FORMATTED = """\
def check(value):
    if value > 1 and value != "a b":
        return pow(value, 2)
    return f"{value!r}"
"""


@pytest.mark.parametrize(
    "after",
    [
        "\n\n# moved\n" + FORMATTED,
        FORMATTED.replace("    return f", "\n    # a comment\n    return f"),
        FORMATTED.replace(":\n    if", ':\n    """Says what it is for."""\n    if'),
        FORMATTED.replace('value > 1 and value != "a b"', '(\n value > 1\n and value != "a b"\n)'),
        FORMATTED.replace("pow(value, 2)", "pow(\n            value,\n            2,\n        )"),
        FORMATTED.replace('"a b"', "'a b'"),
        FORMATTED.replace("    ", "  "),
        FORMATTED.replace("def check(value):", "def check(value) -> 'str | int':"),
    ],
)  # fmt: skip
def test_layout_and_comments_make_no_other_validator(load: Load, after: str) -> None:
    assert digest(load(FORMATTED)) == digest(load(after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def check(v):\n    if v:\n        v = 1\n        v += 1\n",
         "def check(v):\n    if v:\n        v = 1\n    v += 1\n"),
        ("def check(v):\n    return v == 'a b'\n", "def check(v):\n    return v == 'ab'\n"),
        ("check = lambda v: v < 1\n", "check = lambda v: v < 2\n"),
        ("check, _ = (lambda v: v < 1), (lambda v: 0)\n",
         "check, _ = (lambda v: v < 2), (lambda v: 0)\n"),
        ("check = [\n    lambda v: v < 1,\n][0]\n", "check = [\n    lambda v: v < 2,\n][0]\n"),
        ("class Check:\n    def __call__(self, v): return 1\ncheck = Check()\n",
         "class Check:\n    def __call__(self, v): return 2\ncheck = Check()\n"),
    ],
)  # fmt: skip
def test_another_source_is_another_validator(load: Load, before: str, after: str) -> None:
    assert digest(load(before)) == digest(load(before))
    assert digest(load(before)) != digest(load(after))


def test_a_lambda_does_not_change_with_its_neighbour(load: Load) -> None:
    one = load("check, _ = (lambda v: v < 1), (lambda v: 0)\n")
    other = load("check, _ = (lambda v: v < 1), (lambda v: 9)\n")
    assert digest(one) == digest(other)


def test_a_validator_may_have_a_long_expression(load: Load) -> None:
    terms = " + ".join(["v"] * 1_000)
    assert digest(load(f"def check(v):\n    return {terms}\n"))


def placed(load: Load, body: str = BODY, limit: str = "1000", more: str = "") -> type[Message]:
    text = f"LIMIT = {limit}\n\n\n" + PLACED.format(body=body, more=more)
    model: type[Message] = load(text).Placed
    return model


def rules(model: type[Message], root: Path) -> list[str]:
    return [problem.rule for problem in check([model], read_locks(root))]


def test_a_rule_that_moves_out_of_another_is_not_as_frozen(load: Load, tmp_path: Path) -> None:
    freeze([placed(load)], tmp_path / "schemas")
    assert rules(placed(load), tmp_path / "schemas") == []
    assert rules(placed(load, DEDENTED), tmp_path / "schemas") == ["EM031"]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("int", "1000", "500"),
        ("int", "Decimal(1000)", "Decimal(500)"),
        ("date", "date(2030, 1, 1)", "date(2026, 1, 1)"),
        ("Decimal", "Decimal('7.25')", "Decimal('6.25')"),
        ("timedelta", "timedelta(40)", "timedelta(20)"),
    ],
)
def test_a_limit_that_forbids_more_is_not_as_frozen(
    load: Load, tmp_path: Path, kind: str, before: str, after: str
) -> None:
    def limited(limit: str) -> type[Message]:
        text = PLACED.format(body="if v > LIMIT: raise ValueError('too large')", more="")
        model: type[Message] = load(
            f"LIMIT = {limit}\n" + text.replace("amount: int", f"amount: {kind}")
        ).Placed
        return model

    freeze([limited(before)], tmp_path / "schemas")
    assert rules(limited(before), tmp_path / "schemas") == []
    # EM044 where no sample shows that the value was written before.
    assert rules(limited(after), tmp_path / "schemas") in (["EM031"], ["EM044"])


def freeze_as_before(model: type[Message], root: Path) -> Path:
    """Write the lock file that an earlier release wrote of this model."""
    [lock] = freeze([model], root)
    text = re.sub(r"(:[0-9a-f]{12})\.[0-9a-f]{16}\"", r'\1"', lock.path.read_text())
    content = json.loads(text)
    lock.path.write_text(json.dumps({**content, "hash": seal(content)}))
    return lock.path


def test_what_an_earlier_release_froze_is_as_frozen_while_its_own_digest_is_the_same(
    load: Load, tmp_path: Path
) -> None:
    root = tmp_path / "schemas"
    path = freeze_as_before(placed(load), root)
    # The digest in the lock file that the release before wrote: it must never change.
    assert "check:fdd3a8ec1240" in path.read_text()
    assert rules(placed(load), root) == []
    assert rules(placed(load, BODY.replace("v > LIMIT", "v > 5")), root) == ["EM044"]
    assert freeze([placed(load)], root) == []


def test_the_next_revision_is_frozen_with_the_digests_of_today(load: Load, tmp_path: Path) -> None:
    root = tmp_path / "schemas"
    freeze_as_before(placed(load), root)
    longer = placed(load, more="note: str = ''\n")
    [problem] = check([longer], read_locks(root))
    assert (problem.rule, "'amount'" in problem.summary) == ("EM032", False)
    [lock] = freeze([longer], root)
    assert re.search(r"check:[0-9a-f]{12}\.[0-9a-f]{16}", lock.path.read_text())
    assert rules(longer, root) == []
    assert rules(placed(load, DEDENTED, more="note: str = ''\n"), root) == ["EM031"]


SPLIT = """\
class Split(Event, name="shop.split", version=1):
    code: Literal["a(b)", "c"]

    @field_validator("code")
    @classmethod
    def check(cls, value: str) -> str:
        if value.split({text!r})[0] not in ("a", "c"):
            raise ValueError("another code")
        return value
"""


@pytest.mark.parametrize("text", ["(", "[", "*", "a{2,1}", "(?P<x>a)(?P=x)", "\\"])
def test_a_validator_may_mention_a_text_that_is_not_a_pattern(
    load: Load, tmp_path: Path, text: str
) -> None:
    head = "from typing import Literal\n\n"
    frozen = load(head + SPLIT.format(text="(")).Split
    assert freeze([frozen], tmp_path / "schemas")
    [lock] = read_locks(tmp_path / "schemas").of("shop.split")[1]
    model = load(head + SPLIT.format(text=text)).Split
    assert not isinstance(compare_model(lock.writer, model, samples=lock.samples), Unknown)


CHECKS = """\
from typing import Annotated, Literal, NamedTuple, Optional, Union

from pydantic import (
    AfterValidator, BeforeValidator, Field, PlainSerializer, RootModel, StringConstraints,
    model_validator,
)
from typing_extensions import TypeAliasType


def positive(value: int) -> int:
    if value <= 0:
        raise ValueError("not positive")
    return value


Positive = Annotated[int, AfterValidator(positive)]
Named = TypeAliasType("Named", Positive)
Any = Annotated[int, BeforeValidator(positive)]
Later = Annotated[date, Field(ge=date(2020, 1, 1))]


class Checked(BaseModel):
    a: int = 0

    @model_validator(mode="after")
    def even(self):
        if self.a % 2:
            raise ValueError("odd")
        return self


class Unchecked(BaseModel):
    a: int = 0


class Line(BaseModel):
    count: Positive = 1


class OpenLine(BaseModel):
    count: int = 1


def kept(value): return value


Passed = BeforeValidator(kept)
Anyway = Annotated[Positive, Passed]
From1 = Annotated[int, Field(gt=0), Passed]


class Sorted(str, Enum):
    RED = "red"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value):
        return cls.OTHER


class MoreSorted(str, Enum):
    RED = "red"
    BLUE = "blue"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value):
        return cls.OTHER


Stripped = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Migrated(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def migrate(cls, data):
        return data


class Parcel(Migrated):
    weight: Positive
    note: str = ""


class LongerParcel(Migrated):
    weight: Positive
    note: str = ""
    more: Optional[int] = None


class ShorterParcel(Migrated):
    weight: Positive


class WeightlessParcel(Migrated):
    note: str = ""


class OpenParcel(Migrated):
    weight: int
    note: str = ""


class MigratedTree(Migrated):
    value: Annotated[int, Field(gt=0)] = 1
    below: list["MigratedTree"] = []


class LongerMigratedTree(Migrated):
    value: Annotated[int, Field(gt=0)] = 1
    below: list["LongerMigratedTree"] = []
    more: list[int] = []


class OpenMigratedTree(Migrated):
    value: int = 1
    below: list["OpenMigratedTree"] = []


class Tree(BaseModel):
    value: Positive = 1
    below: list["Tree"] = []


class LongerTree(BaseModel):
    value: Positive = 1
    below: list["LongerTree"] = []
    more: list[int] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Positive = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    age: Positive = 1


class OpenDog(BaseModel):
    kind: Literal["dog"] = "dog"
    age: int = 1


Pet = Annotated[Union[Cat, Dog], Field(discriminator="kind")]
OpenPet = Annotated[Union[Cat, OpenDog], Field(discriminator="kind")]


"""


def verdict_of_the_frozen(load: Load, frozen: str, now: str) -> Any:
    """Whether services with the frozen fields read what is written with those of now."""
    text = "class Placed(Event, name='shop.placed', version=1):\n"
    before, after = (
        load(CHECKS + text + "".join(f"    {line.strip()}\n" for line in fields.split(";"))).Placed
        for fields in (frozen, now)
    )
    return compare_schemas(writer_schema(after), reader_schema(before), writer_schema(before))


@pytest.mark.parametrize(
    ("frozen", "now", "lost"),
    [
        ("a: Positive; b: Positive", "a: Positive; b: int", "b (positive)"),
        ("a: Any; b: Any", "a: Any; b: int", "b (positive)"),
        ("a: Line; b: Line", "a: Line; b: OpenLine", "b.count (positive)"),
        ("a: Checked; b: Checked", "a: Checked; b: Unchecked", "b (even)"),
        ("a: Positive; b: list[Positive]", "a: Positive; b: list[int]", "b[] (positive)"),
        ("a: Positive; b: dict[str, Positive]", "a: Positive; b: dict[str, int]",
         "b[] (positive)"),
        ("a: Positive; b: tuple[int, Positive]", "a: Positive; b: tuple[Positive, int]",
         "b[] (positive)"),
        ("a: Positive; b: Optional[Positive]", "a: Positive; b: Optional[int]", "b (positive)"),
        ("a: Named; b: Named", "a: Named; b: int", "b (positive)"),
        ("a: Pet", "a: OpenPet", "a.age (positive)"),
    ],
)  # fmt: skip
def test_a_check_counts_at_the_place_where_the_frozen_reader_has_it(
    load: Load, frozen: str, now: str, lost: str
) -> None:
    verdict = verdict_of_the_frozen(load, frozen, now)
    assert isinstance(verdict, Unknown)
    assert verdict.reason.endswith(f": {lost}")
    assert isinstance(verdict_of_the_frozen(load, frozen, frozen), Compatible)


def test_a_bound_on_a_date_counts_at_the_place_where_the_frozen_reader_has_it(load: Load) -> None:
    frozen = "a: Later; b: Later"
    verdict = verdict_of_the_frozen(load, frozen, "a: Later; b: date")
    assert isinstance(verdict, Breaking)
    assert verdict.reason.startswith("b: ")
    assert isinstance(verdict_of_the_frozen(load, frozen, frozen), Compatible)


@pytest.mark.parametrize(
    ("frozen", "now"),
    [
        ("a: Positive", "z: int = 0; a: Positive"),
        ("a: Positive", "a: Named"),
        ("a: Named", "a: Positive"),
        ("a: Optional[Positive]", "a: Positive"),
        ("a: Optional[Positive]", "a: None"),
        ("a: Union[Positive, str]", "a: str"),
        ("a: Union[Positive, int]", "a: int"),
        ("a: Line = Line()", "b: Line"),
        ("a: Line", "a: Line; b: Line = Line()"),
        ("a: Line; b: Line = Line()", "a: Line"),
        ("a: list[Line]", "a: tuple[Line, Line]"),
        ("a: dict[str, Line]", "a: dict[str, Line]; b: OpenLine = OpenLine()"),
        ("a: Pet", "a: Cat"),
        ("a: list[Pet]", "a: list[Dog]"),
        ("a: Tree", "a: Tree; b: int = 0"),
        ("a: Tree", "a: LongerTree"),
        ("a: int; b: Checked", "a: Positive; b: Checked"),
        ("a: RootModel[Positive]", "a: Positive"),
    ],
)
def test_a_check_that_is_kept_at_its_place_is_the_same_wherever_it_is_declared(
    load: Load, frozen: str, now: str
) -> None:
    assert isinstance(verdict_of_the_frozen(load, frozen, now), Compatible)


@pytest.mark.parametrize(
    ("frozen", "now"),
    [
        ("a: Anyway", "a: Annotated[int, Passed]"),
        ("a: From1", "a: Annotated[int, Passed]"),
        ("a: From1", "a: Annotated[Positive, Passed]"),
        ("a: From1; b: From1", "a: From1; b: Annotated[int, Passed]"),
        ("a: Optional[From1]", "a: Optional[Annotated[int, Passed]]"),
        ("a: Union[int, list[From1]]", "a: Union[int, list[Annotated[int, Passed]]]"),
        ("a: tuple[int, From1]", "a: tuple[int, Annotated[int, Passed]]"),
        ("a: dict[str, From1]", "a: dict[str, Annotated[int, Passed]]"),
        ("a: Annotated[Decimal, Field(le=5), Passed]", "a: Annotated[Decimal, Passed]"),
        ("a: Annotated[date, Field(ge=date(2020, 1, 1)), Passed]", "a: Annotated[date, Passed]"),
        ("a: Annotated[int, Passed]", "a: Annotated[str, Passed]"),
        ("a: Annotated[Line, Passed]", "a: Annotated[OpenLine, Passed]"),
        ("a: Parcel", "a: OpenParcel"),
        ("a: Parcel", "a: WeightlessParcel"),
        ("a: MigratedTree", "a: OpenMigratedTree"),
    ],
)  # fmt: skip
def test_behind_a_validator_that_comes_first_only_what_was_written_there_is_surely_read(
    load: Load, frozen: str, now: str
) -> None:
    verdict = verdict_of_the_frozen(load, frozen, now)
    assert isinstance(verdict, Unknown)
    assert "only known to read what its own version wrote: " in verdict.reason


def test_a_check_that_is_lost_behind_a_validator_that_comes_first_is_named(load: Load) -> None:
    verdict = verdict_of_the_frozen(load, "a: Parcel", "a: OpenParcel")
    assert isinstance(verdict, Unknown)
    assert verdict.reason.endswith("a.weight (positive)")


@pytest.mark.parametrize(
    ("frozen", "now"),
    [
        ("a: Anyway; b: Optional[From1]", "a: Anyway; b: Optional[From1]; c: int = 0"),
        ("a: From1", "a: Annotated[int, Field(gt=5), Passed]"),
        ("a: Annotated[Union[int, str], Passed]", "a: Annotated[int, Passed]"),
        ("a: Union[From1, Annotated[str, Passed]]", "a: From1"),
        ("a: Union[int, list[From1]]", "a: Union[int, list[From1]]; b: int = 0"),
        ("a: Annotated[Decimal, Field(le=5), Passed]",
         "a: Annotated[Decimal, Field(le=5), Passed]; b: int = 0"),
        ("a: Annotated[date, Field(ge=date(2020, 1, 1)), Passed]",
         "a: Annotated[date, Field(ge=date(2020, 1, 1)), Passed]; b: int = 0"),
        ("a: Annotated[Line, Passed]", "a: Annotated[Line, Passed]; b: Line = Line()"),
        ("a: Annotated[dict[str, Line], Passed]",
         "a: Annotated[dict[str, Line], Passed]; b: Line = Line()"),
        ("a: Parcel", "a: Parcel; b: int = 0"),
        ("a: Parcel", "a: LongerParcel"),
        ("a: Parcel", "a: ShorterParcel"),
        ("a: MigratedTree", "a: LongerMigratedTree"),
        ("a: RootModel[From1]", "a: From1"),
    ],
)  # fmt: skip
def test_behind_a_validator_that_comes_first_nothing_changes_for_what_is_written_as_before(
    load: Load, frozen: str, now: str
) -> None:
    assert isinstance(verdict_of_the_frozen(load, frozen, now), Compatible)


def test_a_bound_removed_behind_a_validator_that_comes_first_is_not_as_frozen(
    load: Load, tmp_path: Path
) -> None:
    def with_amount(kind: str) -> type[Message]:
        lines = f"    amount: {kind}\n    note: str = ''\n"
        text = "class Placed(Event, name='shop.placed', version=1):\n" + lines
        model: type[Message] = load(CHECKS + text).Placed
        return model

    root = tmp_path / "schemas"
    freeze([with_amount("From1")], root)
    assert rules(with_amount("From1"), root) == []
    assert rules(with_amount("Annotated[int, Passed]"), root) == ["EM044"]


@pytest.mark.parametrize(
    ("frozen", "now", "told"),
    [
        ("a: Stripped", "a: Stripped; b: int = 0", Compatible),
        ("a: Optional[list[Stripped]]", "a: Optional[list[Stripped]]; b: int = 0", Compatible),
        ("a: Annotated[Stripped, AfterValidator(low)]",
         "a: Annotated[Stripped, AfterValidator(low)]; b: int = 0", Compatible),
        ("a: Annotated[Stripped, AfterValidator(low)]", "a: Stripped", Unknown),
        ("a: Stripped", "a: Annotated[str, Field(min_length=1)]", Unknown),
        ("a: Stripped", "a: Annotated[str, StringConstraints(strip_whitespace=True)]", Unknown),
        ("a: Stripped", "a: int", Breaking),
        ("a: Annotated[Stripped, PlainSerializer(str.lower)]",
         "a: Annotated[str, PlainSerializer(str.lower)]", Unknown),
        ("a: Sorted", "a: Sorted; b: int = 0", Compatible),
        ("a: Optional[Sorted]", "a: Sorted", Compatible),
        ("a: Sorted", "a: MoreSorted", Unknown),
    ],
)  # fmt: skip
def test_a_check_that_only_the_frozen_reader_makes_is_passed_by_what_it_wrote_itself(
    load: Load, frozen: str, now: str, told: type
) -> None:
    verdict = verdict_of_the_frozen(load, frozen, now)
    assert isinstance(verdict, told), verdict
