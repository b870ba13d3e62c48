"""Log lines: readable in a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import orjson
import structlog

from eventmesh.runtime.settings import Settings

_LIBRARIES = ("aio_pika", "aiosqlite", "alembic", "asyncio", "redis", "sqlalchemy", "watchfiles")


def configure_logs(settings: Settings) -> None:
    """Send structlog's and the standard library's lines to standard error, in one format.

    Called once by a command; a service in another program keeps that program's logging.
    """
    level = getattr(logging, settings.log_level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(_chosen(settings.log_format)),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    # What a broker's connection says, our own errors say in words for people.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def _chosen(log_format: Literal["auto", "text", "json"]) -> Literal["text", "json"]:
    if log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return log_format


def _renderers(log_format: Literal["text", "json"]) -> list[structlog.typing.Processor]:
    if log_format == "text":
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]


def _dumps(line: Any, **_options: Any) -> str:
    return orjson.dumps(line, default=str).decode()
