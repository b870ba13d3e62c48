"""The context in which a message was created. Every message carries its own, in the CloudEvents
attributes `traceparent` and `tracestate`, which are those of W3C Trace Context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventmesh.tracing.port import NO_IDS
from eventmesh.wire.envelope import MAX_ATTRIBUTE_BYTES, Envelope

_NO_PARENT = Context()
_W3C = TraceContextTextMapPropagator()
_PLAIN = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def creation_of(envelope: Envelope) -> SpanContext:
    """The context in which a message was created; an invalid one if it carries none that can be
    read."""
    traceparent = envelope.attributes.get("traceparent")
    if traceparent is None:
        return INVALID_SPAN_CONTEXT
    return _read(traceparent, envelope.attributes.get("tracestate", ""))


def written(context: SpanContext) -> Mapping[str, str]:
    """The attributes in which a message carries this context."""
    attributes = {"traceparent": _traceparent(context)}
    if context.trace_state:
        state = context.trace_state.to_header()
        if len(state.encode()) <= MAX_ATTRIBUTE_BYTES:  # W3C Trace Context allows dropping it
            attributes["tracestate"] = state
    return attributes


def carrying(envelope: Envelope, context: Mapping[str, str]) -> Envelope:
    """The envelope with this context of its creation, as it is `written`, and no other."""
    attributes = {**envelope.attributes, **context}
    if "tracestate" not in context:
        attributes.pop("tracestate", None)
    return Envelope(attributes, envelope.data)


def below(context: SpanContext) -> Context:
    """Where a span is started that is to be below this one: in a new trace if it is invalid."""
    if not context.is_valid:
        return _NO_PARENT
    return trace.set_span_in_context(NonRecordingSpan(context), _NO_PARENT)


def is_left_out(context: SpanContext) -> bool:
    """Whether the sampler has decided against the trace of this span."""
    return context.is_valid and not context.trace_flags.sampled


def ids(context: SpanContext) -> Mapping[str, str]:
    """The fields of log lines by which they are found from the span, and it from them."""
    if not context.is_valid:
        return NO_IDS
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def current_ids() -> Mapping[str, str]:
    """The same for what runs now."""
    return ids(trace.get_current_span().get_span_context())


@lru_cache(maxsize=2048)  # each is asked for when its message is received, handled and settled
def _read(traceparent: str, tracestate: str) -> SpanContext:
    if not tracestate and _PLAIN.fullmatch(traceparent):
        # The propagator reads the same, and takes several times as long.
        trace_id, span_id = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
        flags = TraceFlags(int(traceparent[53:], 16))
        read = SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return read if read.is_valid else INVALID_SPAN_CONTEXT
    carrier = {"traceparent": traceparent, "tracestate": tracestate}
    return trace.get_current_span(_W3C.extract(carrier, _NO_PARENT)).get_span_context()


def _traceparent(context: SpanContext) -> str:
    # The propagator would write the same, and take several times as long.
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
