"""Which versions can be read without upcasters: proved once, and again when lock files change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model, field_validator

from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.message import Event, Message
from eventmesh.runtime.declaring import reading
from eventmesh.runtime.declaring.reading import LOOK_AGAIN_AFTER, Readings, Undecided

NAME = "payments.paid"


def paid(version: int, **fields: Any) -> type[Message]:
    keywords = {"name": NAME, "version": version}
    return create_model("Paid", __base__=Event, __cls_kwargs__=keywords, **fields)


class Time:
    """A monotonic time that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def readings(tmp_path: Path, time: Time) -> Readings:
    return Readings(tmp_path, time)


OURS = paid(1, amount=(int, ...))


async def judged(readings: Readings, version: int, model: type[Message] = OURS) -> str | None:
    try:
        return readings.judge(model, version)
    except Undecided as question:
        await readings.look_up(question)
    return readings.judge(model, version)


async def test_a_newer_version_that_is_compatible_is_read(
    readings: Readings, tmp_path: Path
) -> None:
    freeze([paid(2, amount=(int, ...), note=(str, ...))], tmp_path)
    assert await judged(readings, 2) is None


async def test_a_newer_version_that_is_not_compatible_is_rejected_with_a_witness(
    readings: Readings, tmp_path: Path
) -> None:
    freeze([paid(2, amount=(str, ...))], tmp_path)
    reason = await judged(readings, 2)
    assert reason is not None
    assert reason.startswith("version 2 of payments.paid is not known here: this service reads ")
    for part in (
        "version 1,",
        f"{tmp_path}/payments/paid/v2.json",
        '{"amount": "',
        "amount: Input",
    ):
        assert part in reason


async def test_a_version_without_a_lock_file_is_rejected_with_the_folder_searched(
    readings: Readings, tmp_path: Path
) -> None:
    reason = await judged(readings, 7)
    assert reason is not None
    assert f"{tmp_path}/payments/paid has no frozen schema" in reason


async def test_a_version_with_an_invalid_lock_file_is_rejected(
    readings: Readings, tmp_path: Path
) -> None:
    [lock] = freeze([paid(2, amount=(int, ...))], tmp_path)
    lock.path.with_name("v2.2.json").write_text("{")
    reason = await judged(readings, 2)
    assert reason is not None
    assert "v2.2.json is not valid JSON" in reason


async def test_an_older_version_without_upcasters_is_read_if_it_is_compatible(
    readings: Readings, tmp_path: Path
) -> None:
    freeze([paid(1, amount=(int, ...))], tmp_path)
    assert await judged(readings, 1, paid(2, amount=(int, ...), note=(str, ""))) is None
    assert await judged(readings, 1, paid(2, amount=(int, ...), note=(str, ...))) is not None


async def test_every_revision_of_a_version_must_be_compatible(
    readings: Readings, tmp_path: Path
) -> None:
    freeze([paid(2, amount=(int, ...))], tmp_path)
    freeze([paid(2, amount=(int, ...), note=(str, ""))], tmp_path)

    class Strict(Event, name=NAME, version=1, extra="forbid"):
        amount: int

    reason = await judged(readings, 2, Strict)
    assert reason is not None
    assert "v2.2.json" in reason


async def test_a_version_that_crashes_a_validator_is_rejected(
    readings: Readings, tmp_path: Path
) -> None:
    class Crashing(Event, name=NAME, version=1):
        amount: int

        @field_validator("amount")
        @classmethod
        def crash(cls, value: int) -> int:
            raise RuntimeError("validator failed")

    freeze([paid(2, amount=(int, ...))], tmp_path)
    assert await judged(readings, 2, Crashing) is not None


async def test_a_version_frozen_later_is_found_after_a_few_seconds(
    readings: Readings, tmp_path: Path, time: Time
) -> None:
    assert await judged(readings, 2) is not None
    freeze([paid(2, amount=(int, ...))], tmp_path)
    assert await judged(readings, 2) is not None
    time.now += LOOK_AGAIN_AFTER
    assert await judged(readings, 2) is None


async def test_a_revision_frozen_later_is_taken_into_account(
    readings: Readings, tmp_path: Path, time: Time
) -> None:
    class Strict(Event, name=NAME, version=1, extra="forbid"):
        amount: int

    freeze([paid(2, amount=(int, ...))], tmp_path)
    assert await judged(readings, 2, Strict) is None
    freeze([paid(2, amount=(int, ...), note=(str, ""))], tmp_path)
    time.now += LOOK_AGAIN_AFTER
    assert await judged(readings, 2, Strict) is not None


async def test_a_version_is_proved_once_for_all_messages(
    readings: Readings, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved = []
    prove = reading._refused

    def counted(*arguments: Any) -> str | None:
        proved.append(arguments)
        return prove(*arguments)

    monkeypatch.setattr(reading, "_refused", counted)
    freeze([paid(2, amount=(int, ...))], tmp_path)
    assert await asyncio.gather(*(judged(readings, 2) for _ in range(20))) == [None] * 20
    time.now += LOOK_AGAIN_AFTER
    assert await judged(readings, 2) is None
    assert len(proved) == 1


async def test_versions_without_a_lock_file_use_neither_memory_nor_file_access(
    readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await judged(readings, 2) is not None
    listed: list[Path] = []
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or iter(()))
    for version in range(3, 5_000):
        assert readings.judge(OURS, version) is not None
    assert not listed
    [seen] = readings._seen.values()
    assert not seen.reasons
