"""The create span of each message, and the send span of each batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, Span, SpanKind

from eventmesh.tracing import conventions as named
from eventmesh.tracing.otel.contexts import below, carrying, creation_of, is_left_out, written
from eventmesh.tracing.otel.recorder import Recorder, describe, nanoseconds
from eventmesh.tracing.otel.signals import Signals, mark_failed
from eventmesh.tracing.port import Answer, ignore
from eventmesh.wire.envelope import Envelope


class Producing:
    """What one service publishes."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._left_out: tuple[Span | None, Mapping[str, str]] = None, {}
        """The latest span that the sampler had decided against, and how messages carry it."""
        self._of_spans: dict[tuple[named.Operation, str | None], tuple[str, named.Attributes]] = {}

    def created(self, envelope: Envelope, *, delay: float, cause: Envelope | None) -> Envelope:
        """See the port. The create span is below what runs now, with two exceptions.

        A delayed message begins a new trace, linked to this one: or a trace would take as long as
        the longest delay. And where a handler was called with several messages, what one of them
        caused is linked to that one's creation, or is below it if it continues its trace.
        """
        signals = self._recorder.signals
        if signals is None:
            return envelope
        running = trace.get_current_span()
        if running is self._left_out[0] and not delay:  # as it is for all messages of a batch
            return carrying(envelope, self._left_out[1])
        around = running.get_span_context()
        if is_left_out(around) and not running.is_recording() and not delay:
            self._left_out = running, written(around)
            return carrying(envelope, self._left_out[1])
        origin = INVALID_SPAN_CONTEXT if cause is None else creation_of(cause)
        above, context = around, None  # None is what runs
        if delay:
            above = INVALID_SPAN_CONTEXT
            context = below(above)
        elif cause is not None and origin.is_valid and self._recorder.continues(cause):
            above = origin
            context = below(above)
        linked = [each for each in (origin, around) if each.is_valid and each is not above]
        span_name, attributes = self._of_span("create", envelope.name)
        is_likely = above.trace_flags.sampled  # then all at once, which takes less time
        if is_likely:
            attributes = {**attributes, **named.of_message(envelope)}
        span = signals.tracer.start_span(
            span_name,
            context,
            SpanKind.PRODUCER,
            attributes,
            [Link(each) for each in linked],
        )
        if span.is_recording():
            if not is_likely:
                span.set_attributes(named.of_message(envelope))
            if delay:
                span.set_attribute(named.DELAY, delay)
            span.end()
        created = span.get_span_context()
        return carrying(envelope, written(created)) if created.is_valid else envelope

    @contextmanager
    def sending(self, envelopes: Sequence[Envelope]) -> Iterator[Callable[[Answer], None]]:
        """See the port."""
        signals = self._recorder.signals
        if signals is None or not envelopes:
            yield ignore
            return
        place, clock = self._recorder.place, self._recorder.clock
        name = named.common_name(envelopes)
        began, epoch = clock.monotonic(), self._recorder.epoch()
        span_name, attributes = self._of_span("send", name)
        span = signals.tracer.start_span(
            span_name,
            below(INVALID_SPAN_CONTEXT),
            SpanKind.CLIENT,
            attributes,
            start_time=nanoseconds(began, epoch),
        )
        if span.is_recording():
            now = clock.now()
            described = [(envelope, _outbox_time(envelope, now)) for envelope in envelopes]
            describe(span, described, lambda name: named.of_link(place, name))

        def answered(answer: Answer) -> None:
            if span.is_recording():
                self._recorder.tell_peer(span, publishing=True)
            error = self._judge(signals, span, answer)
            told = named.of_operation(place, "send", name)
            signals.measured(clock.monotonic() - began, told, error)
            self._count(signals, envelopes, name, answer)

        try:
            yield answered
        finally:
            span.end(nanoseconds(clock.monotonic(), epoch))

    def _judge(self, signals: Signals, span: Span, answer: Answer) -> str:
        """The type of the error that a batch ended with; empty where it has none."""
        if answer.error is not None:
            signals.failed(span, "send", answer.error)
            return named.error_type(answer.error)
        if answer.rejected:
            mark_failed(span, named.REJECTED, "; ".join(sorted(set(answer.rejected.values()))))
            return named.REJECTED
        return ""

    def _count(
        self, signals: Signals, envelopes: Sequence[Envelope], name: str | None, answer: Answer
    ) -> None:
        """Count what was sent, by its destination and what became of it. `name` is the name of all
        messages, if they have the same one."""
        lost = "" if answer.error is None else named.error_type(answer.error)
        counts: Counter[tuple[str, str]] = Counter()
        if name is not None and not answer.rejected and not answer.unconfirmed:
            counts[name, ""] = len(envelopes)  # nearly always, so it must take little time
        else:
            for envelope in envelopes:
                error = ""
                if envelope.id in answer.rejected:
                    error = named.REJECTED
                elif envelope.id in answer.unconfirmed:
                    error = lost
                counts[envelope.name, error] += 1
        for (name, error), count in counts.items():
            attributes = named.of_operation(self._recorder.place, "send", name)
            signals.sent(count, named.for_counter(attributes), error)

    def _of_span(
        self, operation: named.Operation, message: str | None
    ) -> tuple[str, named.Attributes]:
        """The name and the attributes of such spans."""
        found = self._of_spans.get((operation, message))
        if found is None:
            place = self._recorder.place
            name = named.span_name(operation, named.destination_of(place, message))
            found = name, named.of_span(place, operation, message)
            self._of_spans[operation, message] = found
        return found


def _outbox_time(envelope: Envelope, now: datetime) -> named.Attributes:
    created_at = envelope.time
    if created_at is None or created_at.tzinfo is None:
        return {}
    return {named.OUTBOX_TIME: max((now - created_at).total_seconds(), 0.0)}
