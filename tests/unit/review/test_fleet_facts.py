"""A database on a MariaDB server has the same name however its URL is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventmesh.review.fleet_facts import database_name


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("mariadb://db/shop", "mariadb+asyncmy://me:secret@DB.:3306/shop?charset=utf8mb4"),
        ("mariadb://localhost:3306/shop", "mariadb://127.0.0.1/shop"),
        ("mariadb:///shop?unix_socket=/run/a", "mariadb://h:1/shop?unix_socket=/run/a&port=1"),
    ],
)
def test_urls_of_the_same_database_have_the_same_name(one: str, two: str) -> None:
    assert name_of(one) == name_of(two)
    assert "secret" not in name_of(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("mariadb://db/shop", "mariadb://db/shop2"),
        ("mariadb://db/shop", "mariadb://db:3307/shop"),
        ("mariadb://db/shop", "postgresql://db/shop"),
        ("mariadb://db:5432/shop", "postgresql://db:5432/shop"),
        ("mariadb:///shop?unix_socket=/run/a", "mariadb:///shop?unix_socket=/run/b"),
    ],
)
def test_urls_of_different_databases_have_different_names(one: str, two: str) -> None:
    assert name_of(one) != name_of(two)


def name_of(url: str) -> str:
    return database_name(url, "orders", Path("/"))
