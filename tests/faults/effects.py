"""The effects in the till's database, read past the code under test."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from sqlalchemy import make_url

SUBSCRIPTIONS = ("apply", "tell")

Asked = tuple[str, int]
"""Account and number of a message; unique."""

_ALL = "SELECT subscription, account, number FROM effects ORDER BY id"
_NEWEST = "SELECT count(*), max(at) FROM effects"
_OUTBOX = "SELECT count(*) FROM eventmesh_outbox"

ANSWER_TIMEOUT = 30.0
"""Seconds. A reader goes past the proxies, so it waits this long only on a slow machine."""


class DatabaseAway(Exception):
    """The database does not answer now."""


class Reader(Protocol):
    """Queries a database on a new connection each time; DatabaseAway if it does not answer."""

    async def ask(self, query: str) -> Sequence[Sequence[object]]: ...


class SqliteReader:
    def __init__(self, url: str) -> None:
        self._path = make_url(url).database or ""

    async def ask(self, query: str) -> Sequence[Sequence[object]]:
        return await asyncio.to_thread(self._ask, query)

    def _ask(self, query: str) -> Sequence[Sequence[object]]:
        try:
            with closing(sqlite3.connect(self._path, timeout=ANSWER_TIMEOUT)) as connection:
                return connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise DatabaseAway(str(error)) from error


class PostgresReader:
    def __init__(self, url: str) -> None:
        self._url = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))

    async def ask(self, query: str) -> Sequence[Sequence[object]]:
        try:
            connection = await asyncpg.connect(self._url, timeout=ANSWER_TIMEOUT)
            try:
                rows: Sequence[Sequence[object]] = await connection.fetch(query)
                return rows
            finally:
                await connection.close(timeout=ANSWER_TIMEOUT)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseAway(str(error)) from error


@dataclass(frozen=True)
class Account:
    """The published messages compared with their effects."""

    asked: int
    effects: int
    lost: int
    doubled: int
    in_order: bool


class Effects:
    """The effects in one database."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def ask(self, query: str) -> Sequence[Sequence[object]]:
        """The rows of a query of the test's own."""
        return await self._reader.ask(query)

    async def count(self) -> int:
        [[count, _]] = await self._reader.ask(_NEWEST)
        return int(str(count))

    async def newest(self) -> float:
        """When the newest effect was handled, in seconds since 1970; 0 where there is none."""
        [[_, at]] = await self._reader.ask(_NEWEST)
        return float(str(at or 0))

    async def waiting(self) -> int:
        """How many messages the till's outbox holds."""
        [[count]] = await self._reader.ask(_OUTBOX)
        return int(str(count))

    async def account(self, asked: Sequence[Asked]) -> Account:
        """Compare with what was asked for: each message takes one effect in each subscription."""
        noted: dict[str, list[Asked]] = {name: [] for name in SUBSCRIPTIONS}
        for subscription, account, number in await self._reader.ask(_ALL):
            noted[str(subscription)].append((str(account), int(str(number))))
        counts = [Counter(each) for each in noted.values()]
        return Account(
            asked=len(asked),
            effects=sum(map(len, noted.values())),
            lost=sum(len(set(asked) - set(each)) for each in counts),
            doubled=sum(each.total() - len(each) for each in counts),
            in_order=all(in_order_by_key(each) for each in noted.values()),
        )


def in_order_by_key(noted: Sequence[Asked]) -> bool:
    """Whether the numbers of each account increase."""
    last: dict[str, int] = {}
    for account, number in noted:
        if number < last.get(account, 0):
            return False
        last[account] = number
    return True
