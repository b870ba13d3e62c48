"""Looking up the schemas that a user names, and comparing them with the upcasters of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventmesh import Event
from eventmesh.compat import Breaking, Compatible
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_folder import Locks, read_locks
from eventmesh.review.formats.comparison import as_text, as_value
from eventmesh.review.schema_lookup import Comparison, look_up


class Sold1(Event, name="shop.sold", version=1):
    item: str


class Sold2(Event, name="shop.sold", version=2):
    item: str
    count: int


@Sold2.upcaster(from_version=1)
def _count_one(data: dict) -> dict:  # type: ignore[type-arg]
    return data | {"count": 1}


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    freeze([Sold1], tmp_path)
    freeze([Sold2], tmp_path)
    return read_locks(tmp_path)


def compare(locks: Locks, writer: str, reader: str) -> Comparison:
    one, two = (look_up(text, locks, lambda: [Sold2]) for text in (writer, reader))
    return two.compare_as_reader_of(one)


def test_the_current_code_reads_an_older_version_through_its_upcasters(locks: Locks) -> None:
    comparison = compare(locks, "shop.sold@1", "shop.sold")
    assert isinstance(comparison.verdict, Compatible)
    assert comparison.upcast_from == 1
    assert "The upcasters from version 1 were applied." in as_text(comparison)
    assert as_value(comparison)["upcast_from"] == 1


def test_a_frozen_version_has_no_upcasters_and_the_text_says_so(locks: Locks) -> None:
    comparison = compare(locks, "shop.sold@1", "shop.sold@2")
    assert isinstance(comparison.verdict, Breaking)
    assert "Upcasters are not part of a frozen version" in as_text(comparison)


def test_upcasters_are_mentioned_only_where_they_could_apply(locks: Locks) -> None:
    for writer, reader in (("shop.sold@2", "shop.sold"), ("shop.sold@2", "shop.sold@1")):
        assert "pcasters" not in as_text(compare(locks, writer, reader))
