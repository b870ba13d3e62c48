"""The parts of tracing that need no broker: names, places, and the context that messages carry."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.semconv._incubating.attributes import (
    cloudevents_attributes,
    messaging_attributes,
)
from opentelemetry.semconv._incubating.metrics import messaging_metrics
from opentelemetry.semconv.attributes import (
    error_attributes,
    exception_attributes,
    network_attributes,
    server_attributes,
)
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventmesh.errors import UsageError
from eventmesh.testing.clock import ManualClock
from eventmesh.tracing import conventions
from eventmesh.tracing.loading import make_providers, make_tracing
from eventmesh.tracing.otel.contexts import carrying, creation_of, written
from eventmesh.tracing.place import Place
from eventmesh.tracing.port import NO_TRACING
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.factory import place_of
from eventmesh.wire.envelope import MAX_ATTRIBUTE_BYTES, Envelope

RABBITMQ: Any = {"before": "mesh:", "queue_before": "mesh.queue.", "has_routing_keys": True}
PLAIN = Envelope({"id": "1", "type": "shop.do"}, b"{}")


def test_every_name_that_is_not_our_own_is_in_the_conventions() -> None:
    registry = {
        value
        for module in (
            cloudevents_attributes,
            error_attributes,
            exception_attributes,
            messaging_attributes,
            messaging_metrics,
            network_attributes,
            server_attributes,
        )
        for name, value in vars(module).items()
        if name.isupper()
    }
    ours = {
        value
        for name, value in vars(conventions).items()
        if name.isupper() and isinstance(value, str) and "." in value
    } - {conventions.SCHEMA_URL}
    assert {name for name in ours - registry if not name.startswith("eventmesh.")} == set()


@pytest.mark.parametrize(
    ("url", "place", "destination", "source"),
    [
        ("memory://", Place("memory"), "shop.do", "shop.do"),
        ("sqlite:///broker.db", Place("sqlite"), "shop.do", "shop.do"),
        (
            "redis://user:password@host:6380/1",
            Place("redis", "host", 6380, before="mesh:stream:", has_groups=True),
            "mesh:stream:shop.do",
            "mesh:stream:shop.do",
        ),
        (
            "rediss+cluster://a:1,b:2/",
            Place("redis", before="{mesh}:stream:", has_groups=True),
            "{mesh}:stream:shop.do",
            "{mesh}:stream:shop.do",
        ),
        (
            "amqps://user:p%40ss@[::1]/vhost",
            Place("rabbitmq", "::1", 5671, **RABBITMQ),
            "mesh:shop.do",
            "mesh:shop.do:mesh.queue.shop.sub",
        ),
        (
            "amqp://a,b",
            Place("rabbitmq", **RABBITMQ),
            "mesh:shop.do",
            "mesh:shop.do:mesh.queue.shop.sub",
        ),
        ("amqp://host:port", Place("unknown"), "shop.do", "shop.do"),
        ("nothing", Place("unknown"), "shop.do", "shop.do"),
    ],
)
def test_the_place_of_a_broker_is_read_from_its_url(
    url: str, place: Place, destination: str, source: str
) -> None:
    found = place_of(url, TransportOptions(prefix="mesh"))
    assert found == place
    assert found.destination("shop.do") == destination
    assert found.source("shop.sub", "shop.do") == source


def test_a_batch_of_several_messages_has_a_source_on_rabbitmq_only() -> None:
    assert place_of("amqp://host", TransportOptions()).source("shop.sub", None) == (
        "eventmesh.queue.shop.sub"
    )
    assert place_of("redis://host", TransportOptions()).source("shop.sub", None) == ""


@given(
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    flags=st.sampled_from([0, 1]),
    states=st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.just("v"), max_size=60),
)
def test_a_message_carries_the_context_of_its_creation(
    trace_id: int, span_id: int, flags: int, states: dict[str, str]
) -> None:
    context = SpanContext(
        trace_id, span_id, False, TraceFlags(flags), TraceState(list(states.items()))
    )
    carried = carrying(
        Envelope({**PLAIN.attributes, "tracestate": "older=1"}, b"{}"), written(context)
    )
    found = creation_of(carried)
    assert (found.trace_id, found.span_id, found.trace_flags) == (trace_id, span_id, flags)
    state = carried.attributes.get("tracestate", "")
    assert len(state.encode()) <= MAX_ATTRIBUTE_BYTES
    assert state in ("", context.trace_state.to_header())
    assert "older" not in state


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f-]{50,60}", fullmatch=True), st.text())
def test_a_context_that_cannot_be_read_is_none(traceparent: str, tracestate: str) -> None:
    attributes = {**PLAIN.attributes, "traceparent": traceparent, "tracestate": tracestate}
    found = creation_of(Envelope(attributes, b"{}"))
    assert found.is_valid or found == INVALID_SPAN_CONTEXT


@given(
    st.from_regex(r"(00|01|ff)-[0-9a-f]{31,33}-(0{16}|[0-9a-f]{16})-[0-9a-f]{2}", fullmatch=True)
)
def test_a_context_is_read_as_opentelemetry_reads_it(traceparent: str) -> None:
    extracted = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
    expected = trace.get_current_span(extracted).get_span_context()
    assert creation_of(Envelope({"traceparent": traceparent}, b"{}")) == expected


def test_nothing_is_traced_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name.startswith("opentelemetry") else importlib.util.find_spec(name, package)

    monkeypatch.setattr("eventmesh.tracing.loading.find_spec", find_spec)
    assert make_tracing(Place("memory"), ManualClock(), "none") is NO_TRACING
    with pytest.raises(UsageError, match=r"pip install 'eventmesh\[otel\]'"):
        make_providers(None, None, None)


def test_nothing_changes_while_no_provider_is_configured() -> None:
    tracing = make_tracing(Place("memory"), ManualClock(), "none")
    assert tracing is not NO_TRACING
    assert tracing.created(PLAIN) is PLAIN
    consumer = tracing.consumer("shop.sub", ["shop.do"], [])
    with consumer.receiving() as received:
        received([])
    with consumer.processing([]), consumer.transaction(), consumer.settling([]):
        pass
    assert not consumer.ids_of(_Arrived())


class _Arrived:
    envelope = PLAIN
    attempt = 1
