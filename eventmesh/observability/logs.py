"""Log output: readable text in a terminal, one JSON object a line everywhere else.

An event is a short constant ("worker is ready"), so that it can be searched for and counted; what
varies is in the line's fields. Passwords in URLs are redacted from every field, and control
characters in text from messages cannot reach the terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from typing import Any, Literal

import orjson
import structlog

from eventmesh.printable import printable, printable_lines
from eventmesh.redact import redact_text
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.tracing.loading import current_ids

Line = structlog.typing.EventDict

_LIBRARIES = ("aio_pika", "aiosqlite", "alembic", "asyncio", "redis", "sqlalchemy", "watchfiles")


def configure_logs(settings: Settings) -> None:
    """Send the log lines of structlog and of the standard library to standard error.

    Commands call this once. A service inside another program uses that program's logging.
    """
    level = getattr(logging, settings.log_level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(_resolved_format(settings.log_format)),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
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


def _resolved_format(log_format: Literal["auto", "text", "json"]) -> Literal["text", "json"]:
    if log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return log_format


def _renderers(log_format: Literal["text", "json"]) -> list[structlog.typing.Processor]:
    shared: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _redacted,
    ]
    if log_format == "json":
        return [*shared, structlog.processors.JSONRenderer(_dumps)]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [*shared, _printable, console]


def _with_trace(_logger: Any, _method: str, line: Line) -> Line:
    """Name the span that the line was written in, if there is one."""
    line.update(current_ids())
    return line


def _redacted(_logger: Any, _method: str, line: Line) -> Line:
    """Redact passwords in URLs, which errors of libraries and handlers may repeat."""
    for name, value in line.items():
        if isinstance(value, str) and "://" in value:
            line[name] = redact_text(value)
    return line


def _printable(_logger: Any, _method: str, line: Line) -> Line:
    """Escape control characters, as JSON does anyway. The lines of a traceback are indented, so
    that none of them looks like another line of the log."""
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            if name == "exception":
                line[name] = textwrap.indent(printable_lines(value.rstrip()), "    ")
            else:
                line[name] = printable(value)
    return line


def _dumps(line: Any, **_options: Any) -> str:
    """JSON on one line, also for who splits lines as Unicode does. JSON escapes only the control
    characters of ASCII; between quotes, it can escape any other one, too."""
    dumped = orjson.dumps(line, default=str).decode()
    if dumped.isprintable():
        return dumped
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in dumped)
