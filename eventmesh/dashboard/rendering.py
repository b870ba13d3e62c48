"""Templates: whatever they show is escaped, and control characters are made visible.

Both hold for every expression of every template, not only where somebody has thought of it: HTML
because autoescape is on, control characters because `finalize` sees each value before it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from eventmesh.duration import span
from eventmesh.printable import printable, printable_lines


def make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("eventmesh.dashboard"),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"lines": _lines, "span": _span, "time": _time, "number": _number}
    environment.globals["link"] = link
    return environment


def link(root: str, page: str, query: Mapping[str, Any] | None = None, /, **more: Any) -> str:
    """The address of a page below the place where the dashboard is mounted. What is None is left
    out."""
    given = {name: value for name, value in {**(query or {}), **more}.items() if value is not None}
    return f"{root}{page}" + (f"?{urlencode(given, doseq=True, errors='replace')}" if given else "")


def _finalized(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return printable(value if isinstance(value, str) else str(value))


def _lines(text: str) -> Markup:
    """A text of several lines, for an element that keeps them."""
    return Markup(escape(printable_lines(text)))  # noqa: S704  # escaped here


def _span(seconds: float | None) -> str:
    return "" if seconds is None else span(seconds)


def _time(at: datetime | None) -> Markup:
    if at is None:
        return Markup("")
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S}")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
