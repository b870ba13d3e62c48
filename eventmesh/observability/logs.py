"""Log lines: readable in a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import logging
import sys
import textwrap
from typing import Any, Literal

import orjson
import structlog

from eventmesh.printable import printable, printable_lines
from eventmesh.redact import redact_text
from eventmesh.runtime.declaring.settings import Settings

Line = structlog.typing.EventDict

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
    shared: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _without_passwords,
    ]
    if log_format == "json":
        return [*shared, structlog.processors.JSONRenderer(_dumps)]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [*shared, _printable, console]


def _without_passwords(_logger: Any, _method: str, line: Line) -> Line:
    """The line without the passwords of URLs that a library or a handler's error may repeat."""
    for name, value in line.items():
        if isinstance(value, str) and "://" in value:
            line[name] = redact_text(value)
    return line


def _printable(_logger: Any, _method: str, line: Line) -> Line:
    """The line with the control characters of others' texts escaped, as JSON does it by itself; the
    lines of a traceback are indented, so that none looks like another line of the log."""
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            if name == "exception":
                line[name] = textwrap.indent(printable_lines(value.rstrip()), "    ")
            else:
                line[name] = printable(value)
    return line


def _dumps(line: Any, **_options: Any) -> str:
    return orjson.dumps(line, default=str).decode()
