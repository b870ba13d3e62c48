"""Whether a process can be traced: only where OpenTelemetry is installed (the extra `otel`).

Its import takes longer than a command line may, so it happens when a service is first traced.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.tracing.place import Place
from eventmesh.tracing.port import NO_IDS, NO_TRACING, Tracing

_API = "opentelemetry.trace"


def is_installed() -> bool:
    """Whether OpenTelemetry's API is there."""
    return find_spec("opentelemetry") is not None and find_spec(_API) is not None


def make_tracing(place: Place, clock: Clock, parents: str, providers: Any = None) -> Tracing:
    """What traces a service whose messages go to this place, for which `parents` is the setting
    EVENTMESH_TRACE_PARENTS. Without OpenTelemetry, nothing does."""
    if not is_installed():
        return NO_TRACING
    from eventmesh.tracing.otel.signals import Providers
    from eventmesh.tracing.otel.tracing import OpenTelemetryTracing

    known = Providers() if providers is None else providers
    return OpenTelemetryTracing(place, clock, parents, known, _version())


@cache
def _version() -> str:
    """EventMesh's own; reading it takes milliseconds."""
    return version("eventmesh")


def make_providers(tracer: Any, meter: Any, logger: Any) -> Any:
    """These providers of OpenTelemetry, for `make_tracing`; UsageError where it is not
    installed."""
    if not is_installed():
        raise UsageError(
            "OpenTelemetry is not installed, so that no provider of it can be used: pip install "
            "'eventmesh[otel]'."
        )
    from eventmesh.tracing.otel.signals import Providers

    return Providers(tracer, meter, logger)


def current_ids() -> Mapping[str, str]:
    """The fields `trace_id` and `span_id` of what runs now, for its log lines; none where it has
    no trace."""
    if _API not in sys.modules:  # whoever has begun a span has imported it
        return NO_IDS
    from eventmesh.tracing.otel import contexts

    return contexts.current_ids()
