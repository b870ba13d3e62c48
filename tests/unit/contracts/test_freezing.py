"""Lock files are written once, validated when read, and change in nothing but their status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

import pytest
from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    computed_field,
    create_model,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from eventmesh.compat.pydantic_models.schemas import EDITION, reader_schema, writer_schema
from eventmesh.contracts.locks.drift import check, refuse_drift
from eventmesh.contracts.locks.freezing import freeze, lock_of
from eventmesh.contracts.locks.lock_file import MAX_BYTES, MAX_DEPTH, Lock, seal
from eventmesh.contracts.locks.lock_folder import lock_path, locks_from, read_locks
from eventmesh.contracts.message import Command, Event, Message
from eventmesh.errors import Drift, UsageError


def paid(
    key: str | None = "order_id", version: int = 1, base: type[Message] = Event, **fields: Any
) -> type[Message]:
    """The message `payments.paid`, by default an event, with these fields beside `order_id`."""
    all_fields = {"order_id": (int, ...)} | fields
    keywords = {"name": "payments.paid", "version": version, "key": key}
    return create_model("Paid", __base__=base, __cls_kwargs__=keywords, **all_fields)


def rules(model: type[Message], root: Path) -> list[str]:
    return [problem.rule for problem in check([model], read_locks(root))]


class Inner(BaseModel):
    a: int = 1


class Nested(Event, name="payments.nested", version=1):
    inner: Inner
    more: dict[str, Any] = Field(default_factory=dict, alias="mehr")


def test_the_path_of_a_lock_file_names_owner_message_and_version(tmp_path: Path) -> None:
    [lock] = freeze([paid(version=3)], tmp_path)
    assert lock.path == lock_path(tmp_path, paid(version=3))
    assert lock.path == tmp_path / "payments" / "paid" / "v3.json"
    assert lock.path.exists()


def test_a_name_of_three_parts_becomes_one_folder_under_its_owner(tmp_path: Path) -> None:
    class Deep(Event, name="a.b.c", version=1):
        pass

    assert lock_path(tmp_path, Deep) == tmp_path / "a" / "b.c" / "v1.json"
    freeze([Deep], tmp_path)
    assert read_locks(tmp_path).names() == ["a.b.c"]


def test_a_lock_file_is_read_as_it_was_frozen(tmp_path: Path) -> None:
    [frozen] = freeze([paid(base=Command, currency=(str, "USD"))], tmp_path)
    locks = read_locks(tmp_path)
    assert locks.names() == ["payments.paid"]
    assert locks.of("payments.paid") == {1: (frozen,)}
    assert not locks.problems
    assert (frozen.kind, frozen.key, frozen.status, frozen.sunset) == (
        "command",
        "order_id",
        "active",
        None,
    )
    assert str(frozen) == "payments.paid v1"


def test_only_the_writer_schema_requires_fields_that_have_a_default() -> None:
    lock = lock_of(paid(currency=(str, "USD"), inner=(Inner, Inner())))
    assert set(lock.writer["required"]) == {"order_id", "currency", "inner"}
    assert lock.reader["required"] == ["order_id"]
    assert lock.writer["$defs"]["Inner"]["required"] == ["a"]


def test_the_writer_schema_does_not_require_a_key_that_is_not_required() -> None:
    class Part(TypedDict):
        always: int
        sometimes: NotRequired[int]

    lock = lock_of(paid(part=(Part, ...)))
    assert lock.writer["$defs"]["Part"]["required"] == ["always"]


def test_only_the_writer_schema_forbids_additional_properties() -> None:
    lock = lock_of(Nested)
    assert lock.writer["additionalProperties"] is False
    assert lock.writer["$defs"]["Inner"]["additionalProperties"] is False
    assert "additionalProperties" not in json.dumps(lock.reader["$defs"])


def test_fields_are_frozen_by_their_aliases() -> None:
    assert "mehr" in lock_of(Nested).writer["properties"]


class Rich(Event, name="payments.rich", version=1):
    order_id: UUID
    amount: Annotated[Decimal, Field(ge=0, max_digits=8, decimal_places=2)]
    way: Literal["card", "cash"]
    lines: list[Inner] = Field(max_length=3)
    note: str | None = None


def test_samples_are_valid_messages_that_cover_values_empty_lists_and_nulls() -> None:
    samples = lock_of(Rich).samples
    assert 4 <= len(samples) <= 8
    for sample in samples:
        written = Rich.model_validate_json(json.dumps(sample)).model_dump_json(by_alias=True)
        assert json.loads(written) == sample
    assert {sample["way"] for sample in samples} == {"card", "cash"}
    assert {bool(sample["lines"]) for sample in samples} == {True, False}
    assert {sample["note"] is None for sample in samples} == {True, False}


def test_freezing_twice_gives_the_same_samples() -> None:
    assert lock_of(Rich) == lock_of(Rich)


SETS = """
import json
from eventmesh import Event
from eventmesh.contracts.locks.freezing import lock_of

class Tagged(Event, name="a.tagged", version=1):
    tags: set[str]
    sizes: list[frozenset[str]]

print(json.dumps(lock_of(Tagged).samples))
"""


def test_samples_with_sets_are_the_same_in_every_process() -> None:
    printed = {
        subprocess.run(  # noqa: S603  # our own interpreter and text
            [sys.executable, "-c", SETS],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2, 3)
    }
    [samples] = map(json.loads, printed)
    assert any(len(sample["tags"]) > 1 for sample in samples)


def test_samples_contain_computed_fields_and_serialization_aliases() -> None:
    class Sum(Event, name="a.sum", version=1):
        one: int = Field(validation_alias="read", serialization_alias="written")

        @computed_field
        @property
        def twice(self) -> int:
            return 2 * self.one

    samples = lock_of(Sum).samples
    assert samples
    for sample in samples:
        assert sample.keys() == {"written", "twice"}
        assert sample["twice"] == 2 * sample["written"]


def test_a_model_that_rejects_every_generated_value_has_no_samples(tmp_path: Path) -> None:
    class Unsatisfiable(Event, name="a.unsatisfiable", version=1):
        word: str

        @field_validator("word")
        @classmethod
        def secret(cls, value: str) -> str:
            raise RuntimeError("never")

    freeze([Unsatisfiable], tmp_path)
    [lock] = read_locks(tmp_path).of("a.unsatisfiable")[1]
    assert lock.samples == ()


def test_freezing_again_writes_nothing(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    before = lock.path.stat()
    assert freeze([paid()], tmp_path) == []
    after = lock.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert rules(paid(), tmp_path) == []


def test_a_new_version_is_frozen_beside_the_old_one(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    freeze([paid(version=2, amount=(int, ...))], tmp_path)
    assert {path.name for path in tmp_path.rglob("*.json")} == {"v1.json", "v2.json"}
    assert rules(paid(), tmp_path) == []


def test_a_version_cannot_be_skipped(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    assert rules(paid(version=3), tmp_path) == ["EM035"]
    with pytest.raises(Drift, match=r"version 2 was skipped.*Declare payments.paid with version=2"):
        freeze([paid(version=3)], tmp_path)


def test_the_first_frozen_version_may_have_any_number(tmp_path: Path) -> None:
    assert len(freeze([paid(version=3)], tmp_path)) == 1


def test_a_compatible_change_is_frozen_as_another_revision(tmp_path: Path) -> None:
    first, changed = paid(), paid(note=(str, ""))
    [one] = freeze([first], tmp_path)
    before = one.path.read_bytes()
    assert rules(changed, tmp_path) == ["EM032"]
    [two] = freeze([changed], tmp_path)
    assert (two.revision, two.path.name, str(two)) == (2, "v1.2.json", "payments.paid v1.2")
    assert one.path.read_bytes() == before
    assert read_locks(tmp_path).of("payments.paid") == {1: (one, two)}
    assert rules(changed, tmp_path) == []
    [three] = freeze([paid(note=(str, ""), other=(int | None, None))], tmp_path)
    assert three.path.name == "v1.3.json"


def test_code_that_returns_to_an_earlier_revision_has_no_drift(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    freeze([paid(note=(str, ""))], tmp_path)
    assert rules(paid(), tmp_path) == []
    assert freeze([paid()], tmp_path) == []


def test_a_change_must_be_compatible_with_every_revision(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    freeze([paid(note=(str, ""))], tmp_path)
    with pytest.raises(Drift, match="note"):
        freeze([paid(note=(str, ...))], tmp_path)  # the first revision writes no note


@pytest.mark.parametrize(
    ("before", "after", "summary"),
    [
        ({}, {"fee": (int, ...)}, "field 'fee' was added"),
        ({"fee": (int, ...)}, {}, "field 'fee' was removed"),
        ({"fee": (int, ...)}, {"fee": (str, ...)}, "field 'fee' changed"),
        (
            {"fee": (int, ...)},
            {"tax": (int, ...)},
            "field 'tax' was added, field 'fee' was removed",
        ),
        ({"way": (Literal["a"], ...)}, {"way": (Literal["a", "b"], ...)}, "field 'way' changed"),
    ],
)
def test_a_breaking_change_is_rejected_with_a_witness_and_the_fix(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], summary: str
) -> None:
    freeze([paid(**before)], tmp_path)
    [problem] = check([paid(**after)], read_locks(tmp_path))
    assert problem.rule == "EM031"
    assert summary in problem.summary
    assert problem.witness is not None
    assert json.dumps(problem.witness.document) in problem.summary
    for step in ("raise its version by one to 2", "upcaster(from_version=1)", "schema freeze"):
        assert step in problem.fix
    with pytest.raises(Drift, match=summary):
        freeze([paid(**after)], tmp_path)


@pytest.mark.parametrize(
    ("model", "summary"),
    [
        (paid(base=Command), "the kind changed from 'event' to 'command'"),
        (paid(key=None), "the key changed from 'order_id' to None"),
    ],
)
def test_a_change_of_kind_or_key_within_a_version_is_a_problem(
    tmp_path: Path, model: type[Message], summary: str
) -> None:
    freeze([paid()], tmp_path)
    [problem] = check([model], read_locks(tmp_path))
    assert (problem.rule, problem.summary) == ("EM042", summary)


def test_a_validator_that_rejects_previously_valid_data_is_a_breaking_change(
    tmp_path: Path,
) -> None:
    class Odd(Event, name="payments.paid", version=1, key="order_id"):
        order_id: int

        @field_validator("order_id")
        @classmethod
        def odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ValueError("even")
            return value

    freeze([paid()], tmp_path)
    assert rules(Odd, tmp_path) == ["EM031"]


def test_freezing_writes_no_lock_when_one_message_has_drifted(tmp_path: Path) -> None:
    class Fresh(Event, name="payments.fresh", version=1):
        pass

    freeze([paid()], tmp_path)
    with pytest.raises(Drift, match=r"field 'fee' was added.*raise its version by one"):
        freeze([Fresh, paid(fee=(int, ...))], tmp_path)
    assert rules(Fresh, tmp_path) == ["EM030"]
    assert read_locks(tmp_path).names() == ["payments.paid"]


def test_a_waived_change_is_frozen_as_another_revision(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    changed = paid(fee=(int, ...))
    [problem] = check([changed], read_locks(tmp_path))
    [lock] = freeze([changed], tmp_path, waived={problem.fingerprint})
    assert lock.path.name == "v1.2.json"
    assert rules(changed, tmp_path) == []


def test_names_of_classes_descriptions_and_the_order_of_fields_are_not_drift(
    tmp_path: Path,
) -> None:
    class Plain(Event, name="a.b", version=1):
        one: int
        two: str | None = "x"
        inner: Inner

    freeze([Plain], tmp_path)

    class Innermost(BaseModel):
        """The same by another name."""

        a: int = Field(1, title="A")

    class Adorned(Event, name="a.b", version=1, title="Something else"):
        """Explained at length."""

        inner: Innermost
        two: str | None = Field("x", description="The second.", examples=["y"])
        one: int

    assert check([Adorned], read_locks(tmp_path)) == []
    assert freeze([Adorned], tmp_path) == []


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        lock = json.loads(content)
        change(lock)
        return json.dumps(lock).encode()

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (edited(lambda lock: lock["writer"].update(minProperties=0)), "was edited"),
        (edited(lambda lock: lock["reader"].update(title="T")), "was edited"),
        (edited(lambda lock: lock["samples"].pop()), "was edited"),
        (edited(lambda lock: lock["samples"][0].update(order_id=7)), "was edited"),
        (edited(lambda lock: lock.update(key=None)), "was edited"),
        (edited(lambda lock: lock.update(kind="command")), "was edited"),
        (edited(lambda lock: lock.update(version=2)), "was edited"),
        (edited(lambda lock: lock.update(hash=1)), "was edited"),
        (edited(lambda lock: lock.update(status="gone")), "status"),
        (edited(lambda lock: lock.update(sunset="soon")), "sunset"),
        (edited(lambda lock: lock.update(sunset=["2026"])), "sunset"),
        (edited(lambda lock: lock.pop("samples")), "lacks samples"),
        (edited(lambda lock: lock.update(extra=1)), "unknown keys extra"),
        (lambda content: b"", "is not valid JSON"),
        (lambda content: b"{", "is not valid JSON"),
        (lambda content: b"[]", "is not a lock file"),
        (lambda content: b"null", "is not a lock file"),
        (lambda content: b"\xff", "is not valid UTF-8"),
        (lambda content: content.decode().encode("utf-16"), "is not valid UTF-8"),
        (lambda content: b"[" * 100_000, "nested too deeply"),
        (lambda content: b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "levels deep"),
        (lambda content: b'{"status": 1, "status": 1}', "'status' twice"),
        (lambda content: b'{"a": [{"b": 1, "b": 2}]}', "'b' twice"),
        (lambda content: b'{"status": NaN}', "NaN is not a JSON number"),
        (lambda content: b'{"status": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (lambda content: content + b" " * MAX_BYTES, "has more than"),
    ],
)
def test_an_edited_or_invalid_lock_file_is_reported_as_a_problem(
    tmp_path: Path, edit: Callable[[bytes], bytes], reason: str
) -> None:
    [lock] = freeze([paid()], tmp_path)
    lock.path.write_bytes(edit(lock.path.read_bytes()))
    [problem] = check([paid()], read_locks(tmp_path))
    assert (problem.rule, problem.subject) == ("EM033", "payments.paid v1")
    assert reason in problem.summary
    assert problem.place is not None
    assert problem.place.file == str(lock.path)
    assert "version control" in problem.fix
    with pytest.raises(Drift):
        freeze([paid()], tmp_path)


def test_the_formatting_of_a_lock_file_does_not_matter(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    content = json.loads(lock.path.read_text())
    lock.path.write_text(json.dumps(dict(reversed(content.items())), separators=(",", ":")))
    assert read_locks(tmp_path).of("payments.paid") == {1: (lock,)}


def test_a_lock_file_under_the_name_of_another_version_is_a_problem(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    lock.path.rename(lock.path.with_name("v2.json"))
    [problem] = read_locks(tmp_path).problems
    assert "contains revision 1 of payments.paid v1" in problem.summary


def test_locks_can_be_read_from_file_contents_in_memory(tmp_path: Path) -> None:
    class Deep(Event, name="a.b.c", version=1):
        pass

    written = freeze([paid(), Deep], tmp_path) + freeze([paid(note=(str, ""))], tmp_path)
    files = {lock.path.relative_to(tmp_path).as_posix(): lock.path.read_bytes() for lock in written}
    shutil.rmtree(tmp_path / "payments")
    locks = locks_from(tmp_path, files | {"payments/paid/v2.json": b"{", "README.md": b""})
    assert locks.names() == ["a.b.c", "payments.paid"]
    assert locks.of("payments.paid") == {1: (written[0], written[2])}
    assert [problem.subject for problem in locks.problems] == ["payments.paid v2"]


def test_a_revision_number_far_too_large_is_reported(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    lock.path.with_name("v1.999999999.json").write_bytes(b"{}")
    assert len(read_locks(tmp_path).problems) == 2


def test_an_unexpected_file_is_a_warning_and_does_not_stop_freezing(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    lock.path.with_name("v1 (copy).json").write_bytes(lock.path.read_bytes())
    assert [problem.severity for problem in check([paid()], read_locks(tmp_path))] == ["warning"]
    refuse_drift([paid()], tmp_path)
    assert freeze([paid()], tmp_path) == []


def test_a_missing_revision_is_a_problem(tmp_path: Path) -> None:
    freeze([paid()], tmp_path)
    freeze([paid(note=(str, ""))], tmp_path)
    (tmp_path / "payments/paid/v1.json").unlink()
    [problem] = read_locks(tmp_path).problems
    assert (problem.rule, "v1.json is missing" in problem.summary) == ("EM033", True)


def test_a_misnamed_lock_file_and_one_that_is_not_a_regular_file_are_problems(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "payments" / "paid"
    (folder / "v1.json").mkdir(parents=True)
    os.mkfifo(folder / "v2.json")
    (folder / "v01.json").write_text("{}")
    (folder / "README.md").write_text("Ours.")
    assert [problem.summary for problem in read_locks(tmp_path).problems] == [
        f"the lock file {folder / name} {reason}"
        for name, reason in (
            ("v01.json", "is not named v<N>.json or v<N>.<R>.json"),
            ("v1.json", "is not a regular file"),
            ("v2.json", "is not a regular file"),
        )
    ]


def test_a_missing_or_empty_folder_has_no_locks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "nothing", tmp_path / "file", tmp_path):
        locks = read_locks(root)
        assert (locks.names(), locks.of("a.b"), locks.problems) == ([], {}, [])


def test_the_error_for_an_unwritable_folder_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "payments").touch()
    with pytest.raises(UsageError, match=r"v1.json cannot be written: .*EVENTMESH_SCHEMAS"):
        freeze([paid()], tmp_path)


def test_the_error_for_a_model_that_nests_too_deeply_says_what_to_do() -> None:
    kind: Any = int
    for _ in range(MAX_DEPTH):
        kind = list[kind]
    with pytest.raises(UsageError, match="Declare the inner parts as classes"):
        lock_of(paid(deep=(kind, ...)))


SUNSET = date(2027, 1, 31)


def changed_lines(before: bytes, after: bytes) -> list[str]:
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    return [new.decode().strip() for old, new in pairs if old != new]


def test_deprecating_changes_only_status_and_sunset_of_every_revision(
    tmp_path: Path,
) -> None:
    written = freeze([paid()], tmp_path) + freeze([paid(note=(str, '"status": "x"'))], tmp_path)
    freeze([paid(version=2)], tmp_path)
    before = [lock.path.read_bytes() for lock in written]
    locks = read_locks(tmp_path)
    assert locks.deprecate(written[1], SUNSET) == [lock.path for lock in written]
    for lock, content in zip(written, before, strict=True):
        assert changed_lines(content, lock.path.read_bytes()) == [
            '"status": "deprecated",',
            '"sunset": "2027-01-31",',
        ]
    states = {
        lock.path.name: (lock.status, lock.sunset)
        for revisions in locks.of("payments.paid").values()
        for lock in revisions
    }
    assert states == {
        "v1.json": ("deprecated", SUNSET),
        "v1.2.json": ("deprecated", SUNSET),
        "v2.json": ("active", None),
    }
    assert not locks.problems
    assert rules(paid(), tmp_path) == []

    locks.retire(written[0])
    assert {lock.status for lock in locks.of("payments.paid")[1]} == {"retired"}
    assert not read_locks(tmp_path).problems


def test_retiring_keeps_the_formatting_of_the_lock_file(tmp_path: Path) -> None:
    [lock] = freeze([paid(status=(Literal["active"], ...))], tmp_path)
    content = json.loads(lock.path.read_text())
    before = json.dumps(dict(reversed(content.items()))).encode() + b"\r\n\r\n"
    lock.path.write_bytes(before)
    read_locks(tmp_path).retire(lock)
    head, _, tail = before.rpartition(b'"active"')  # the last one, below the samples
    assert lock.path.read_bytes() == head + b'"retired"' + tail
    assert b'"status": "active"' in head


def test_a_new_revision_of_a_deprecated_version_is_deprecated(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    read_locks(tmp_path).deprecate(lock, SUNSET)
    [new] = freeze([paid(note=(str, ""))], tmp_path)
    assert (new.status, new.sunset) == ("deprecated", SUNSET)


def test_rewriting_a_lock_file_leaves_no_temporary_file(tmp_path: Path) -> None:
    [lock] = freeze([paid()], tmp_path)
    read_locks(tmp_path).retire(lock)
    assert [path.name for path in lock.path.parent.iterdir()] == ["v1.json"]


def test_locks_are_compared_by_value() -> None:
    assert isinstance(lock_of(paid()), Lock)
    assert lock_of(paid()) == lock_of(paid())


# Lock files of earlier releases, which left out some of what a model does -------------------------


class Bird(BaseModel):
    name: str


AT_MOST_A_DAY = Annotated[timedelta, Field(le=timedelta(days=1))]
LEFT_OUT = [
    pytest.param((AT_MOST_A_DAY, ...), id="bound on a timedelta"),
    pytest.param((int | SkipJsonSchema[None], None), id="null shown by no schema"),
    pytest.param((str, Field(json_schema_extra={"enum": ["EUR"]})), id="enum by hand"),
    pytest.param((list[SerializeAsAny[Bird]], ...), id="any subclass"),
]


def freeze_as_before(model: type[Message], root: Path, edition: int = 1) -> None:
    """Write the lock file that a release wrote which had this edition of schemas."""
    [lock] = freeze([model], root)
    content = json.loads(lock.path.read_text())
    named = {} if edition == 1 else {EDITION: edition}
    content["writer"] = writer_schema(model, edition=edition) | named
    content["reader"] = reader_schema(model, edition=edition)
    lock.path.write_text(json.dumps({**content, "hash": seal(content)}))


@pytest.mark.parametrize("field", LEFT_OUT)
def test_what_an_earlier_release_left_out_is_frozen_once_more(tmp_path: Path, field: Any) -> None:
    freeze_as_before(paid(a=field), tmp_path)
    refuse_drift([paid(a=field)], tmp_path)
    [problem] = check([paid(a=field)], read_locks(tmp_path))
    assert problem.rule == "EM032"
    assert "an earlier release froze it" in problem.summary
    [lock] = freeze([paid(a=field)], tmp_path)
    assert lock.revision == 2
    assert rules(paid(a=field), tmp_path) == []
    assert freeze([paid(a=field)], tmp_path) == []
    assert rules(paid(a=field, b=(int, 0)), tmp_path) == ["EM032"]


@pytest.mark.parametrize("edition", [1, 2])
def test_bounds_on_keys_that_an_earlier_release_left_out_are_frozen_once_more(
    tmp_path: Path, edition: int
) -> None:
    field = (dict[Annotated[int, Field(gt=0)], int], ...)
    freeze_as_before(paid(a=field), tmp_path, edition)
    refuse_drift([paid(a=field)], tmp_path)
    assert rules(paid(a=field), tmp_path) == ["EM032"]
    [lock] = freeze([paid(a=field)], tmp_path)
    assert lock.revision == 2
    assert rules(paid(a=field), tmp_path) == []


@pytest.mark.parametrize("field", LEFT_OUT)
def test_a_field_may_be_added_to_what_an_earlier_release_froze(tmp_path: Path, field: Any) -> None:
    freeze_as_before(paid(a=field), tmp_path)
    assert rules(paid(a=field, b=(int, 0)), tmp_path) == ["EM032"]
    [lock] = freeze([paid(a=field, b=(int, 0))], tmp_path)
    assert lock.revision == 2
    assert rules(paid(a=field, b=(int, 0)), tmp_path) == []


@pytest.mark.parametrize(
    "field",
    [int, timedelta, date | None, Annotated[int, Field(ge=0)], Annotated[date, Field(ge=date.min)],
     dict[int, float], dict[Decimal, int], dict[date, int]],
    ids=["int", "timedelta", "optional date", "bounded int", "bounded date", "keys of int",
         "keys of Decimal", "keys of date"],
)  # fmt: skip
@pytest.mark.parametrize("edition", [1, 2])
def test_what_an_earlier_release_froze_in_full_need_not_be_frozen_again(
    tmp_path: Path, field: Any, edition: int
) -> None:
    freeze_as_before(paid(a=(field, ...)), tmp_path, edition)
    assert rules(paid(a=(field, ...)), tmp_path) == []
    assert freeze([paid(a=(field, ...))], tmp_path) == []


def test_a_bound_on_a_timedelta_cannot_be_added_to_what_is_frozen_in_full(tmp_path: Path) -> None:
    freeze([paid(a=(timedelta, ...))], tmp_path)
    assert rules(paid(a=(AT_MOST_A_DAY, ...)), tmp_path) == ["EM031"]
