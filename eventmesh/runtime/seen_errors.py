"""Which errors were logged with their traceback, so that it is logged once and not each time."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType

_REMEMBERED_ERRORS = 100


class SeenErrors:
    """The last hundred different errors of one handler: their types, and where they came from."""

    def __init__(self) -> None:
        self._seen: dict[object, None] = {}

    def is_new(self, error: Exception) -> bool:
        """Whether no error like this one is remembered. From now on it is."""
        kind = type(error), tuple(_places(error))
        is_new = kind not in self._seen
        self._seen.pop(kind, None)
        self._seen[kind] = None  # last: a dict keeps the order
        if len(self._seen) > _REMEMBERED_ERRORS:
            del self._seen[next(iter(self._seen))]
        return is_new


def _places(error: Exception) -> Iterator[tuple[CodeType, int]]:
    """The lines of the user's code that the error went through. Ours are left out, because they
    differ between a message alone and one in a group."""
    step = error.__traceback__
    while step is not None:
        if not step.tb_frame.f_globals.get("__name__", "").startswith("eventmesh."):
            yield step.tb_frame.f_code, step.tb_lineno
        step = step.tb_next
