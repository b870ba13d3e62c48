"""What holds between the versions of one message, from the oldest that may still arrive to today's.

Every such version is read by today's model: through upcasters, which are pure and take whatever
their version allows, or as it is, where that is proved. A downcaster ends in what its version
allowed. What holds within one version is said by `eventmesh.contracts.locks.drift`.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.model_documents import nodes
from eventmesh.compat.models import allowed, compare_model, reader_schema, written
from eventmesh.compat.shrink import shrunk
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
    """What is wrong between the versions of this model's message.

    `locks_of_name` are the frozen revisions of each version, the oldest first. A version that is
    retired is not sent any more, and may be unreadable. Without `today` no sunset is looked at.
    """
    versions = _Versions(model, locks_of_name)
    return [
        *versions.skipped(),
        *versions.of_another_kind(),
        *versions.past_sunset(today),
        *versions.without_upcasters(),
        *versions.upcast_wrongly(),
        *versions.downcast_wrongly(),
        *versions.with_another_default(),
    ]


@dataclass(frozen=True)
class _Versions:
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

    def skipped(self) -> Iterator[Problem]:
        known = sorted(self.locks)
        for version in range(known[0], known[-1]) if known else ():
            if version not in self.locks:
                yield self.problem(
                    "EM035",
                    version,
                    f"version {version} has no lock file, and version {known[-1]} has",
                    f"Restore v{version}.json from version control.",
                )
        if known and known[-1] > self.current:
            yield self.problem(
                "EM035",
                known[-1],
                f"version {known[-1]} is frozen, and {self.model.__name__} is version "
                f"{self.current}: a version never goes back",
                f"Raise the version of {self.model.__name__} to {known[-1]} again; or, if version "
                f"{known[-1]} never left this machine, remove its lock files.",
            )

    def of_another_kind(self) -> Iterator[Problem]:
        kind = self.model.__identity__.kind
        for lock in self.older():
            if lock.kind != kind:
                yield self.problem(
                    "EM042",
                    self.current,
                    f"it is {_a(kind)}, and version {lock.version} is {_a(lock.kind)}",
                    "A message stays what it is: give the new one another name.",
                    marks=(f"from {lock.version}",),
                )
                return

    def past_sunset(self, today: date | None) -> Iterator[Problem]:
        for version, revisions in sorted(self.locks.items()):
            lock = revisions[-1]
            if today and lock.status == "deprecated" and lock.sunset and lock.sunset < today:
                yield self.problem(
                    "EM043",
                    version,
                    f"it is deprecated, and its sunset was on {lock.sunset}",
                    f"Run `eventmesh schema retire {lock.name} {version}`, which says where any of "
                    f"it is left; or give it a later sunset by `eventmesh schema deprecate`.",
                    severity="warning",
                )

    def without_upcasters(self) -> Iterator[Problem]:
        """Older versions that no chain of upcasters leads away from, and that are not read as they
        are: one problem for each upcaster that is missing."""
        told: set[int] = set()
        for lock in self.older():
            if lock.version in readable_versions(self.model):
                continue
            step = self._missing_step(lock.version)
            if step in told:
                continue
            verdict = compare_model(lock.writer, self.model, samples=lock.samples)
            if isinstance(verdict, Breaking):
                told.add(step)
                yield self.problem(
                    "EM036",
                    step + 1,
                    f"{lock} allows {_shown(verdict.witness)}, which {self.model.__name__} "
                    f"(version {self.current}) refuses ({verdict.reason}), and there is no "
                    f"upcaster from version {step}",
                    f"Write @{self.model.__name__}.upcaster(from_version={step}), a function from "
                    f"the data of version {step} to that of version {step + 1}; or retire version "
                    f"{lock.version} when `eventmesh schema inventory` finds none of it.",
                    witness=Witness(verdict.witness, verdict.reason),
                    changes=verdict.changes,
                    marks=(f"from {step}",),
                )
            elif isinstance(verdict, Unknown):
                told.add(step)
                yield self.unknown(
                    lock,
                    f"is read by version {self.current} without an upcaster",
                    verdict,
                    f"Write @{self.model.__name__}.upcaster(from_version={step})",
                )

    def _missing_step(self, version: int) -> int:
        while version in self.model.__upcasters__:
            version += 1
        return version

    def upcast_wrongly(self) -> Iterator[Problem]:
        """The upcasters, run on what was written, and on documents that could have been."""
        told: set[tuple[str, int]] = set()
        for lock in self.older():
            if lock.version not in readable_versions(self.model):
                continue
            chain = _Chain(
                {s: self.model.__upcasters__[s] for s in range(lock.version, self.current)}
            )
            verdict = compare_model(lock.writer, self.model, cast=chain.run, samples=lock.samples)
            for problem in self._of_chain(lock, chain, verdict):
                key = problem.rule, int(problem.marks[0].partition(" ")[2] or 0)
                if key not in told:
                    told.add(key)
                    yield problem

    def _of_chain(self, lock: Lock, chain: _Chain, verdict: Any) -> Iterator[Problem]:
        for step, (document, why) in chain.impure.items():
            yield self.problem(
                "EM038",
                lock.version,
                f"the upcaster {chain.name(step)} from version {step} {why}",
                "Let it return a new dict that depends on nothing but its argument, such as "
                "`return data | {…}`; copy.deepcopy what is changed further inside.",
                witness=Witness(document, f"{chain.name(step)} {why}"),
                marks=(f"from {step}",),
            )
        if isinstance(verdict, Unknown):
            yield self.unknown(
                lock, f"ends in a valid version {self.current}", verdict, "Correct the upcasters"
            )
        elif isinstance(verdict, Breaking):
            step, raised = chain.failure_on(verdict.witness)
            if raised is None:
                rule, what = "EM039", f"{self.model.__name__} refuses what the upcasters make of"
                step = lock.version
            else:
                rule, what = (
                    "EM037",
                    f"the upcaster {chain.name(step)} from version {step} fails on",
                )
            yield self.problem(
                rule,
                lock.version,
                f"{what} {_shown(verdict.witness)}, which {lock} allows: {verdict.reason}",
                f"Let the upcaster take everything that {lock.path} allows, and return what "
                f"version {step + 1 if raised else self.current} asks for.",
                witness=Witness(verdict.witness, verdict.reason),
                changes=verdict.changes if raised is None else (),
                marks=(f"from {step}",),
            )

    def downcast_wrongly(self) -> Iterator[Problem]:
        """The downcasters, run on what today's model writes."""
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
                    f"its downcaster is never reached: there is none to version {reached - 1}",
                    f"Write @{self.model.__name__}.downcaster(to_version={reached - 1}), too.",
                    marks=(f"to {version}",),
                )
        for version in range(self.current - 1, reached - 1, -1):
            revisions = self.locks.get(version, ())
            if revisions and revisions[-1].status != "retired":
                problem = self._downcast_wrongly(version, revisions)
                if problem is not None:
                    yield problem
                    return  # the chain goes on from here

    def _downcast_wrongly(self, version: int, revisions: Sequence[Lock]) -> Problem | None:
        functions = self.model.__downcasters__
        chain = _Chain({s: functions[s] for s in range(self.current - 1, version - 1, -1)})
        takes = [allowed(lock.writer) for lock in revisions]
        samples = [sample for lock in self.locks.get(self.current, ()) for sample in lock.samples]

        def refused(document: Any) -> str:
            try:
                made = json.loads(_as_json(chain.run(document)))
            except Exception as error:  # noqa: BLE001  # a user's function may raise anything
                return f"{type(error).__name__}: {error}"
            reasons = [take(made) for take in takes]
            return "" if "" in reasons else f"{_shown(made)} is not allowed: {reasons[-1]}"

        mine = written(self.model)
        failing = next((d for d in [*samples, *mine] if refused(d)), None)
        why = ""
        if failing is not None:
            failing = shrunk(
                failing,
                lambda d: bool(refused(d)) and _is_written(self.model, d),
                StepBudget(10_000),
            )
            why = refused(failing)
        elif chain.impure:
            failing, why = next(iter(chain.impure.values()))
        else:
            return None
        name = chain.name(version)
        return self.problem(
            "EM041",
            version,
            f"the downcaster {name} to version {version} fails on {_shown(failing)}: {why}",
            f"Let it return, as a new dict, what {revisions[-1].path} allows, for everything that "
            f"{self.model.__name__} writes.",
            witness=Witness(failing, why),
            marks=(f"to {version}",),
        )

    def with_another_default(self) -> Iterator[Problem]:
        """What stands in for a field that is not there, where it was another before."""
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
                    f"the default of {name} was {before} in {lock} and is {after}: where it is "
                    f"left out, something else is meant now",
                    "Keep the default, or give the new meaning a field of another name.",
                    severity="warning",
                    changes=(
                        Change("EM021", f"#{pointer}", name, f"{before}, now {after}", "Keep it."),
                    ),
                    marks=(pointer,),
                )

    def unknown(self, lock: Lock, what: str, verdict: Unknown, instead: str) -> Problem:
        return self.problem(
            "EM044",
            lock.version,
            f"whether {lock} {what} could be neither proved nor refuted: {verdict.reason}",
            f"{instead}; or show that it is read, and waive this with a reason.",
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
    """Functions that are run one after another, and what was seen of them doing it."""

    steps: Mapping[int, Step]
    impure: dict[int, tuple[Any, str]] = field(default_factory=dict)
    """For each step that is not pure a document and what was wrong."""

    def name(self, step: int) -> str:
        return str(getattr(self.steps[step], "__name__", self.steps[step]))

    def run(self, document: dict[str, Any]) -> dict[str, Any]:
        """What comes out at the end; each step is given copies, and is run twice."""
        data: Any = document
        for step in self.steps:
            data = self._one(step, data)
        return data  # type: ignore[no-any-return]

    def failure_on(self, document: Any) -> tuple[int, Exception | None]:
        """The step that raises on this document, and what it raises; None when none does."""
        data: Any = document
        for step in self.steps:
            try:
                data = self._one(step, data)
            except Exception as error:  # noqa: BLE001  # a user's function may raise anything
                return step, error
        return next(iter(self.steps)), None

    def _one(self, step: int, data: Any) -> Any:
        function = self.steps[step]
        first, second = copy.deepcopy(data), copy.deepcopy(data)
        made = function(first)
        if not isinstance(made, dict):
            raise TypeError(f"it returned a {type(made).__name__}, and not a dict")
        again = copy.deepcopy(made)  # what it returned may be changed by what it is run on next
        if step not in self.impure:
            if _as_json(first) != _as_json(data):
                self.impure[step] = data, "changes the data that it is given"
            elif _as_json(function(second)) != _as_json(again):
                self.impure[step] = data, "does not answer the same twice"
        return again


def _is_written(model: type[Message], document: Any) -> bool:
    try:
        text = model.model_validate_json(json.dumps(document)).model_dump_json(by_alias=True)
    except Exception:  # noqa: BLE001  # whatever a user's validator raises, it says no
        return False
    return _as_json(json.loads(text)) == _as_json(document)


def _as_json(value: Any) -> str:
    """The same for the same values of the same types; what is no JSON is as the wire has it."""
    from pydantic_core import to_jsonable_python

    return json.dumps(value, sort_keys=True, default=to_jsonable_python)


def _shown(value: Any) -> str:
    text = _as_json(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "event" else f"a {kind}"


def _place(model: type[Message]) -> Place | None:
    """Where the model is declared, if it is in a file."""
    try:
        file = inspect.getsourcefile(model)
        _, line = inspect.getsourcelines(model)
    except (OSError, TypeError):
        return None
    return None if file is None else Place(file, line)
