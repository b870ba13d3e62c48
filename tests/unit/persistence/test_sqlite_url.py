from __future__ import annotations

import pytest

from eventmesh.errors import UsageError
from eventmesh.persistence.database_url import parse_url


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("sqlite://bank.db", "sqlite:///bank.db"),
        ("sqlite://data/bank.db", "sqlite:///data/bank.db"),
    ],
    ids=["a file", "a folder"],
)
def test_a_url_with_a_slash_too_few_is_rejected_with_the_one_that_is_meant(
    url: str, instead: str
) -> None:
    with pytest.raises(UsageError, match=f"EVENTMESH_BANK_DATABASE_URL .* write {instead} for a"):
        parse_url(url, "bank")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///bank.db", "sqlite:////var/lib/bank.db"])
def test_a_url_of_a_file_or_of_memory_is_accepted(url: str) -> None:
    assert parse_url(url, "bank").host is None
