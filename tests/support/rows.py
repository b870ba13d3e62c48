"""Rows of a table that tests fill, collected from all processes of a test run.

A worker of pytest-xdist sends what it collected when it ends; the controlling process, which prints
and writes the tables, adds it to its own. Rows are sent as plain values, in the order in which the
workers end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest

Row = TypeVar("Row")


class Rows(Generic[Row]):
    """A pytest plugin that holds the rows of one table, by the name of the table."""

    def __init__(
        self, name: str, encode: Callable[[Row], Any], decode: Callable[[Any], Row]
    ) -> None:
        """`encode` turns a row into texts, numbers, lists and dicts; `decode` turns it back."""
        self.name = name
        self.all: list[Row] = []
        self._encode = encode
        self._decode = decode

    def add(self, row: Row) -> None:
        """Put a row into the table."""
        self.all.append(row)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """In a worker: send the rows."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[self.name] = [self._encode(row) for row in self.all]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the controlling process: a worker has ended, and sent its rows."""
        sent = getattr(node, "workeroutput", {}).get(self.name, [])
        self.all.extend(self._decode(row) for row in sent)
