"""The formats of a report: text for people, and others for programs, CI services and scanners."""

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
"""The formats by name. Each returns an empty string or text that ends with a line break."""
