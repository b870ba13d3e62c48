"""EventMesh's own log lines, taken into the story while a mesh runs instead of being printed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NoReturn

import structlog


@contextmanager
def taken_by(take: Callable[[str, MutableMapping[str, Any]], None]) -> Iterator[None]:
    """While the context is open, warnings and errors are given to `take`: level and fields."""

    def process(_logger: object, level: str, fields: MutableMapping[str, Any]) -> NoReturn:
        take(level, fields)
        raise structlog.DropEvent

    pool = logging.getLogger("sqlalchemy.pool")  # reports connections that a kill has cut
    level = pool.level
    pool.setLevel(logging.CRITICAL + 1)
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        processors=[process],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        pool.setLevel(level)
        structlog.reset_defaults()
        if before is not None:
            structlog.configure(**before)
