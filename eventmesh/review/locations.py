"""Where a finding is best shown: beside the line that somebody changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place, Problem

_OF_A_FILE = {"EM033", "EM034"}


def placed(
    problems: Iterable[Problem], models: Sequence[type[Message]], folder: Path
) -> list[Problem]:
    """The problems, those of a model at its class instead of at its lock file, and all of them
    with a place relative to the folder where it is in it."""
    classes = {str(model.__identity__): model for model in models}
    return [_placed(problem, classes.get(problem.subject), folder) for problem in problems]


def _placed(problem: Problem, model: type[Message] | None, folder: Path) -> Problem:
    place = problem.place
    if model is not None and problem.rule not in _OF_A_FILE and _is_lock(place):
        place = _of_class(model) or place
    if place is not None and Path(place.file).is_relative_to(folder):
        place = replace(place, file=Path(place.file).relative_to(folder).as_posix())
    return replace(problem, place=place)


def _is_lock(place: Place | None) -> bool:
    return place is None or place.file.endswith(".json")


def _of_class(model: type[Message]) -> Place | None:
    try:
        file, (_, line) = inspect.getsourcefile(model), inspect.getsourcelines(model)
    except (OSError, TypeError):  # made by a program, or changed since it was loaded
        return None
    return None if file is None else Place(file, line)
