"""Checking the versions of one message against each other.

The current model must read every older version that may still arrive, that is, every frozen version
that is not retired: through upcasters, or directly where that is proved. With version 4 as the
current one, versions 1 to 3 frozen and upcasters from 2 and 3, messages of versions 2 and 3 are run
through the upcasters, and version 1 must be readable as it is or needs an upcaster (EM036).

Upcasters are run twice on copies of many documents, to see that they accept everything their
version allows and are pure. Downcasters are run on what the current model writes. Changes within
one version are the matter of `eventmesh.contracts.locks.drift`.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.pydantic_models.comparison import (
    allowed,
    compare_model,
    reader_schema,
    written,
)
from eventmesh.compat.pydantic_models.documents import nodes
from eventmesh.compat.search.shrink import shrunk
from eventmesh.compat.verdict import Breaking, Change, Unknown
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.message import Message, identity_of
from eventmesh.contracts.problem import Place, Problem, Severity, Witness
from eventmesh.contracts.versions import readable_versions

Revisions = Mapping[int, Sequence[Lock]]
Step = Callable[[dict[str, Any]], dict[str, Any]]


def check_versions(
    model: type[Message], locks_of_name: Revisions, *, today: date | None = None
) -> list[Problem]:
    """The problems between the versions of this model's message.

    `locks_of_name` are the frozen revisions of each version, oldest first. Retired versions need
    not be readable. Sunset dates are compared with `today`, if it is given.
    """
    versions = _Versions(model, locks_of_name)
    return [
        *versions.check_numbers(),
        *versions.check_status(),
        *versions.check_kind(),
        *versions.check_sunsets(today),
        *versions.check_versions_without_upcasters(),
        *versions.check_upcasters(),
        *versions.check_downcasters(),
        *versions.check_defaults(),
    ]


@dataclass(frozen=True)
class _Versions:
    """A model and the frozen versions of its message; each method checks one rule."""

    model: type[Message]
    locks: Revisions

    @property
    def current(self) -> int:
        return self.model.__identity__.version

    def older(self) -> Iterator[Lock]:
        """Each revision of an older version that may still arrive."""
        for version in sorted(self.locks):
            if version < self.current:
                yield from (lock for lock in self.locks[version] if lock.status != "retired")

    def check_numbers(self) -> Iterator[Problem]:
        known = sorted(self.locks)
        for version in range(known[0], known[-1]) if known else ():
            if version not in self.locks:
                yield self.problem(
                    "EM035",
                    version,
                    f"version {version} has no lock file, although version {known[-1]} has one",
                    f"Restore v{version}.json from version control.",
                )
        if known and known[-1] > self.current:
            yield self.problem(
                "EM035",
                known[-1],
                f"version {known[-1]} is frozen, but {self.model.__name__} is version "
                f"{self.current}: the version of a message never decreases",
                f"Set the version of {self.model.__name__} back to {known[-1]}. If version "
                f"{known[-1]} was never deployed, you may delete its lock files instead.",
            )

    def check_status(self) -> Iterator[Problem]:
        """Nobody need read a retired version, so the current one cannot be retired."""
        for lock in self.locks.get(self.current, ()):
            if lock.status == "retired":
                found = self.problem(
                    "EM033",
                    self.current,
                    f"{lock.path} says that it is retired, but {self.model.__name__} still has "
                    f"version {self.current}, so it is sent",
                    f'Set "status" back to "active" in {lock.path}. Once the version of '
                    f"{self.model.__name__} is raised, `eventmesh schema retire {lock.name} "
                    f"{self.current}` says when no message of version {self.current} is left.",
                )
                yield replace(found, place=Place(str(lock.path)))
                return

    def check_kind(self) -> Iterator[Problem]:
        kind = self.model.__identity__.kind
        for lock in self.older():
            if lock.kind != kind:
                yield self.problem(
                    "EM042",
                    self.current,
                    f"it is {_a(kind)}, but version {lock.version} is {_a(lock.kind)}",
                    "The kind of a message never changes. Give the new message another name.",
                    marks=(f"from {lock.version}",),
                )
                return

    def check_sunsets(self, today: date | None) -> Iterator[Problem]:
        for version, revisions in sorted(self.locks.items()):
            lock = revisions[-1]
            if today and lock.status == "deprecated" and lock.sunset and lock.sunset < today:
                yield self.problem(
                    "EM043",
                    version,
                    f"it is deprecated, and its sunset was on {lock.sunset}",
                    f"Run `eventmesh schema retire {lock.name} {version}`, which lists the "
                    f"messages of it that are left; or set a later date with `eventmesh schema "
                    f"deprecate`.",
                    severity="warning",
                )

    def check_versions_without_upcasters(self) -> Iterator[Problem]:
        """Older versions without upcasters must be readable directly; one problem for each upcaster
        that is missing."""
        reported: set[int] = set()
        for lock in self.older():
            if lock.version in readable_versions(self.model):
                continue
            step = self._missing_step(lock.version)
            if step in reported:
                continue
            verdict = compare_model(lock.writer, self.model, samples=lock.samples)
            if isinstance(verdict, Breaking):
                reported.add(step)
                yield self.problem(
                    "EM036",
                    step + 1,
                    f"{lock} allows {_shown(verdict.witness)}, which {self.model.__name__} "
                    f"(version {self.current}) rejects ({verdict.reason}), and there is no "
                    f"upcaster from version {step}",
                    f"Write @{self.model.__name__}.upcaster(from_version={step}), a function that "
                    f"converts data of version {step} to version {step + 1}; or retire version "
                    f"{lock.version} once `eventmesh schema inventory` finds no message of it.",
                    witness=Witness(verdict.witness, verdict.reason),
                    changes=verdict.changes,
                    marks=(f"from {step}",),
                )
            elif isinstance(verdict, Unknown):
                reported.add(step)
                yield self.unknown(
                    lock,
                    f"can be read by version {self.current} without an upcaster",
                    verdict,
                    f"Write @{self.model.__name__}.upcaster(from_version={step})",
                )

    def _missing_step(self, version: int) -> int:
        while version in self.model.__upcasters__:
            version += 1
        return version

    def check_upcasters(self) -> Iterator[Problem]:
        """Run the upcasters on the samples, and on documents made from the frozen schema."""
        reported: set[tuple[str, int]] = set()
        for lock in self.older():
            if lock.version not in readable_versions(self.model):
                continue
            chain = _Chain(
                {s: self.model.__upcasters__[s] for s in range(lock.version, self.current)}
            )
            verdict = compare_model(lock.writer, self.model, cast=chain.run, samples=lock.samples)
            for problem in self._problems_of_chain(lock, chain, verdict):
                key = problem.rule, int(problem.marks[0].partition(" ")[2] or 0)
                if key not in reported:
                    reported.add(key)
                    yield problem

    def _problems_of_chain(self, lock: Lock, chain: _Chain, verdict: Any) -> Iterator[Problem]:
        for step, (document, why) in chain.impure.items():
            yield self.problem(
                "EM038",
                lock.version,
                f"the upcaster {chain.name(step)} from version {step} {why}",
                "Return a new dict that depends on nothing but the argument, such as `return data "
                "| {…}`. Use copy.deepcopy before changing nested values.",
                witness=Witness(document, f"{chain.name(step)} {why}"),
                marks=(f"from {step}",),
            )
        if isinstance(verdict, Unknown):
            yield self.unknown(
                lock, f"becomes a valid version {self.current}", verdict, "Correct the upcasters"
            )
        elif isinstance(verdict, Breaking):
            step, raised = chain.failure_on(verdict.witness)
            if raised is None:
                rule = "EM039"
                what = f"{self.model.__name__} rejects what the upcasters return for"
                step = lock.version
            else:
                rule = "EM037"
                what = f"the upcaster {chain.name(step)} from version {step} fails on"
            yield self.problem(
                rule,
                lock.version,
                f"{what} {_shown(verdict.witness)}, which {lock} allows: {verdict.reason}",
                f"Let the upcaster accept everything that {lock.path} allows, and return valid "
                f"data of version {step + 1 if raised else self.current}.",
                witness=Witness(verdict.witness, verdict.reason),
                changes=verdict.changes if raised is None else (),
                marks=(f"from {step}",),
            )

    def check_downcasters(self) -> Iterator[Problem]:
        """Run the downcasters on what the current model writes."""
        functions = self.model.__downcasters__
        if not functions:
            return
        reached = self.current
        while reached - 1 in functions:
            reached -= 1
        for version in sorted(functions):
            if version < reached:
                yield self.problem(
                    "EM041",
                    version,
                    f"its downcaster is never called, because there is none to version "
                    f"{reached - 1}",
                    f"Write @{self.model.__name__}.downcaster(to_version={reached - 1}) as well.",
                    marks=(f"to {version}",),
                )
        for version in range(self.current - 1, reached - 1, -1):
            revisions = self.locks.get(version, ())
            if revisions and revisions[-1].status != "retired":
                problem = self._check_downcaster(version, revisions)
                if problem is not None:
                    yield problem
                    return  # the following downcasters depend on this one

    def _check_downcaster(self, version: int, revisions: Sequence[Lock]) -> Problem | None:
        functions = self.model.__downcasters__
        chain = _Chain({s: functions[s] for s in range(self.current - 1, version - 1, -1)})
        checks = [allowed(lock.writer) for lock in revisions]
        samples = [sample for lock in self.locks.get(self.current, ()) for sample in lock.samples]

        def failure(document: Any) -> str:
            """Why the result for this document is not allowed; empty if it is."""
            try:
                made = json.loads(_as_json(chain.run(document)))
            except Exception as error:  # noqa: BLE001  # a user's function may raise anything
                return f"{type(error).__name__}: {error}"
            reasons = [check(made) for check in checks]
            return "" if "" in reasons else f"{_shown(made)} is not allowed: {reasons[-1]}"

        mine = written(self.model)
        failing = next((d for d in [*samples, *mine] if failure(d)), None)
        why = ""
        if failing is not None:
            failing = shrunk(
                failing,
                lambda d: bool(failure(d)) and _is_written(self.model, d),
                StepBudget(10_000),
            )
            why = failure(failing)
        elif chain.impure:
            failing, why = next(iter(chain.impure.values()))
        else:
            return None
        name = chain.name(version)
        return self.problem(
            "EM041",
            version,
            f"the downcaster {name} to version {version} fails on {_shown(failing)}: {why}",
            f"Return a new dict that {revisions[-1].path} allows, for everything that "
            f"{self.model.__name__} writes.",
            witness=Witness(failing, why),
            marks=(f"to {version}",),
        )

    def check_defaults(self) -> Iterator[Problem]:
        """A changed default changes the meaning of messages that leave the field out."""
        known = [version for version in self.locks if version <= self.current]
        if not known:
            return
        lock = self.locks[max(known)][-1]
        now = dict(nodes(reader_schema(self.model)))
        for pointer, node in nodes(lock.reader):
            other = now.get(pointer, {})
            if "default" in node and "default" in other and node["default"] != other["default"]:
                name = pointer.rpartition("/")[2]
                before, after = _shown(node["default"]), _shown(other["default"])
                yield self.problem(
                    "EM040",
                    self.current,
                    f"the default of {name} changed from {before} (in {lock}) to {after}, so "
                    f"messages without that field mean something else now",
                    "Keep the default, or use a field with another name for the new meaning.",
                    severity="warning",
                    changes=(
                        Change(
                            "EM021",
                            f"#{pointer}",
                            name,
                            f"the default changed from {before} to {after}",
                            "Keep it.",
                        ),
                    ),
                    marks=(pointer,),
                )

    def unknown(self, lock: Lock, what: str, verdict: Unknown, instead: str) -> Problem:
        return self.problem(
            "EM044",
            lock.version,
            f"it could be neither proved nor refuted that {lock} {what}: {verdict.reason}",
            f"{instead}; or make sure that it is read, and waive this finding with a reason.",
            changes=verdict.changes,
            marks=(f"from {lock.version}",),
        )

    def problem(
        self,
        rule: str,
        version: int,
        summary: str,
        fix: str,
        *,
        severity: Severity = "error",
        witness: Witness | None = None,
        changes: tuple[Change, ...] = (),
        marks: tuple[str, ...] = (),
    ) -> Problem:
        identity = identity_of(self.model)
        return Problem(
            rule,
            severity,
            f"{identity.name} v{version}",
            summary,
            fix,
            (identity.owner,),
            _place(self.model),
            witness,
            changes,
            marks=marks,
        )


@dataclass
class _Chain:
    """Upcasters or downcasters to run one after another.

    Each is run twice on copies of its input, and those that are not pure are remembered.
    """

    steps: Mapping[int, Step]
    impure: dict[int, tuple[Any, str]] = field(default_factory=dict)
    """For each function that is not pure: a document on which that was seen, and what it did."""

    def name(self, step: int) -> str:
        return str(getattr(self.steps[step], "__name__", self.steps[step]))

    def run(self, document: dict[str, Any]) -> dict[str, Any]:
        """The result of the last function."""
        data: Any = document
        for step in self.steps:
            data = self._run_step(step, data)
        return data  # type: ignore[no-any-return]

    def failure_on(self, document: Any) -> tuple[int, Exception | None]:
        """The step that fails on this document, and its exception; None if none fails."""
        data: Any = document
        for step in self.steps:
            try:
                data = self._run_step(step, data)
            except Exception as error:  # noqa: BLE001  # a user's function may raise anything
                return step, error
        return next(iter(self.steps)), None

    def _run_step(self, step: int, data: Any) -> Any:
        function = self.steps[step]
        first, second = copy.deepcopy(data), copy.deepcopy(data)
        made = function(first)
        if not isinstance(made, dict):
            raise TypeError(f"it returned a {type(made).__name__} instead of a dict")
        again = copy.deepcopy(made)  # a copy, since the next function may modify it
        if step not in self.impure:
            if _as_json(first) != _as_json(data):
                self.impure[step] = data, "modifies its argument"
            elif _as_json(function(second)) != _as_json(again):
                self.impure[step] = data, "returns different results for the same data"
        return again


def _is_written(model: type[Message], document: Any) -> bool:
    try:
        text = model.model_validate_json(json.dumps(document)).model_dump_json(by_alias=True)
    except Exception:  # noqa: BLE001  # a user's validator may raise anything
        return False
    return _as_json(json.loads(text)) == _as_json(document)


def _as_json(value: Any) -> str:
    """JSON with sorted keys; other values, such as dates, are written as in a message."""
    from pydantic_core import to_jsonable_python

    return json.dumps(value, sort_keys=True, default=to_jsonable_python)


def _shown(value: Any) -> str:
    text = _as_json(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "event" else f"a {kind}"


def _place(model: type[Message]) -> Place | None:
    """The place where the model is declared, if that is in a file."""
    try:
        file = inspect.getsourcefile(model)
        _, line = inspect.getsourcelines(model)
    except (OSError, TypeError):
        return None
    return None if file is None else Place(file, line)
