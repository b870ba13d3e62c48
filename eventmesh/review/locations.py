"""Moving findings to the place where a reader wants to see them: the line that was changed.

Most checks report a lock file as the place. In a pull request a finding helps more beside the
class whose change it is about.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place, Problem

_ABOUT_FILES = {"EM033", "EM034"}


def locate(
    problems: Iterable[Problem], models: Sequence[type[Message]], folder: Path
) -> list[Problem]:
    """Place findings about a model at its class, and make all places relative to the folder."""
    classes = {str(model.__identity__): model for model in models}
    located = []
    for problem in problems:
        place, model = problem.place, classes.get(problem.subject)
        is_at_lock_file = place is None or place.file.endswith(".json")
        if model is not None and problem.rule not in _ABOUT_FILES and is_at_lock_file:
            place = _place_of_class(model) or place
        if place is not None and Path(place.file).is_relative_to(folder):
            place = replace(place, file=Path(place.file).relative_to(folder).as_posix())
        located.append(replace(problem, place=place))
    return located


def _place_of_class(model: type[Message]) -> Place | None:
    try:
        file, (_, line) = inspect.getsourcefile(model), inspect.getsourcelines(model)
    except (OSError, TypeError):  # the class was created dynamically, or its file changed
        return None
    return None if file is None else Place(file, line)
