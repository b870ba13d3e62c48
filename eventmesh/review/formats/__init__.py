"""The forms in which a report is written: for people, programs and the services that run checks."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from eventmesh.review.formats import github, json, junit, sarif, text
from eventmesh.review.report import Report

FORMATS: MappingProxyType[str, Callable[[Report], str]] = MappingProxyType(
    {
        "text": text.render,
        "json": json.render,
        "github": github.render,
        "junit": junit.render,
        "sarif": sarif.render,
    }
)
"""Each format by its name; each gives a text that ends with a line break, or nothing."""
