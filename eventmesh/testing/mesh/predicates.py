"""What a test says of the services' databases: always, in the end, or at least once.

A predicate is an ordinary function. It is given `read`, which opens a session on a service's
database, and returns False or raises AssertionError where it does not hold:

    @mesh.always
    def stock_is_never_negative(read):
        return all(stock.on_hand >= 0 for stock in read(inventory).scalars(select(Stock)))

`always` is asked after each commit that wrote to a table of the user's, before anything else
happens; `eventually` when nothing can happen any more; `sometimes` after each such commit too, but
it must hold only once, in any of the runs of a simulation. One that read other databases only, when
it was asked last, is not asked again: its answer is the same.
"""

from __future__ import annotations

import inspect
import sqlite3
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.service import DeclaredService as Service

Read = Callable[[Service], Session]
Predicate = Callable[[Read], bool | None]

FAILED = (AssertionError, pytest.fail.Exception)
"""What says that something does not hold: `assert`, and `pytest.fail` or `pytest.raises`, whose
exception is not an Exception."""


class Violation(AssertionError):
    """Something that must hold does not."""


class BrokenPredicate(UsageError):
    """A predicate raised something else than AssertionError, so that nobody knows if it holds."""


@dataclass
class Predicates:
    """The predicates of one run. `paths` are the files of the services, by their names, and
    `engines` those of earlier runs on the same files: a new one compiles each statement again."""

    paths: dict[str, Path]
    engines: dict[Path, Engine] = field(default_factory=dict)
    always: list[Predicate] = field(default_factory=list)
    eventually: list[Predicate] = field(default_factory=list)
    sometimes: list[Predicate] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    """The names of those that need hold only once, and did."""
    _have_read: dict[Predicate, set[str]] = field(default_factory=dict)
    """The services whose databases each has read when it was asked last."""

    def ask_after_write(self, written: Path | None = None) -> None:
        """Violation where one of `always` does not hold; `written` is the file that was written to,
        if it was only one."""
        for predicate in self.always:
            if self._may_differ(predicate, written):
                self._require(predicate, "always")
        for predicate in self.sometimes:
            if (
                name_of(predicate) not in self.held
                and self._may_differ(predicate, written)
                and self._holds(predicate)
            ):
                self.held.add(name_of(predicate))

    def _may_differ(self, predicate: Predicate, written: Path | None) -> bool:
        """Whether its answer may be another one than the last, now that this file was written."""
        have_read = self._have_read.get(predicate)
        if not have_read or written is None:
            return True
        return any(self.paths[service] == written for service in have_read)

    def ask_at_end(self) -> None:
        """Violation where one does not hold that must in the end."""
        self.ask_after_write()
        for predicate in self.eventually:
            self._require(predicate, "in the end")

    def _require(self, predicate: Predicate, when: str) -> None:
        try:
            self._ask(predicate)
        except FAILED as error:
            raise Violation(
                f"{name_of(predicate)} must hold {when}, and does not: {_said(error)}"
            ) from error

    def _holds(self, predicate: Predicate) -> bool:
        try:
            self._ask(predicate)
        except FAILED:
            return False
        return True

    def _ask(self, predicate: Predicate) -> None:
        """One of FAILED if it does not hold."""
        sessions: list[Session] = []
        have_read = self._have_read[predicate] = set()

        def read(service: Service) -> Session:
            have_read.add(service.name)
            sessions.append(Session(self._engine(service.name)))
            return sessions[-1]

        try:
            if predicate(read) is False:
                raise AssertionError("it returned False")
        except AssertionError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise BrokenPredicate(
                f"{name_of(predicate)} raised {type(error).__name__} at {place.filename}:"
                f"{place.lineno}: {error}. A predicate that does not hold returns False, or raises "
                f"AssertionError."
            ) from error
        finally:
            for session in sessions:
                session.close()

    def _engine(self, service: str) -> Engine:
        path = self.paths[service]
        if path not in self.engines:
            self.engines[path] = create_engine(
                "sqlite://", creator=lambda: sqlite3.connect(path), poolclass=StaticPool
            )
        return self.engines[path]

    def close(self) -> None:
        """Close what was opened to read."""
        for engine in self.engines.values():
            engine.dispose()


def _said(error: BaseException) -> str:
    """What an assertion says: its line, where it has no words of its own."""
    if said := str(error):
        return said
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{place.line} at {place.filename}:{place.lineno}"


def checked(predicate: Predicate) -> Predicate:
    """The predicate; UsageError for one whose answer would be a coroutine, which is never False."""
    name = name_of(predicate)
    if inspect.iscoroutinefunction(predicate):
        raise UsageError(
            f"The predicate {name} is a coroutine function: write it with `def`, and "
            f"read with the session that it is given."
        )
    return predicate


def name_of(predicate: Predicate) -> str:
    return str(getattr(predicate, "__name__", predicate))
