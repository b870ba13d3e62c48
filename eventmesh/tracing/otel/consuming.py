"""The receive span and the settle span of each batch, and the process span of each call of a
handler.

Times are those of our clock, which a test may own. A process span ends when its handler returns,
but is handed to OpenTelemetry only after the transaction: by then it is known whether what it did
was rolled back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, Span, SpanContext, SpanKind

from eventmesh.clock import Clock
from eventmesh.redact import redact_text
from eventmesh.tracing import conventions as named
from eventmesh.tracing.otel.contexts import below, creation_of, ids, is_left_out
from eventmesh.tracing.otel.recorder import Recorder, describe, nanoseconds
from eventmesh.tracing.otel.signals import Signals, mark_failed
from eventmesh.tracing.port import IGNORING, NO_IDS, NOTHING, Arrived, Settled

LONGEST_PULL = 0.1
"""Seconds. A lane that has waited longer than this for messages was not receiving them: there were
none. Its receive span then has no duration; otherwise the traces of a quiet service would begin
with minutes in which nothing happened."""


NOTHING_MORE: named.Attributes = {}


@dataclass(slots=True)
class _Batch:
    """What a lane works on. `span` is what its process spans are below: the receive span, which has
    ended, at `received_at` of the clock's monotonic time."""

    signals: Signals
    span: Span
    received_at: float
    epoch: float
    """As the recorder had it then."""
    processed: dict[int, SpanContext] = field(default_factory=dict)
    """The last process span of each delivery, by the delivery's identity."""

    is_left_out: bool = field(init=False)
    """Whether the sampler has decided against all of it."""
    context: Context = field(init=False)
    """What its spans are below, and handlers that have no process span are called in."""
    ids: Mapping[str, str] = field(init=False)
    """For log lines about messages that have no process span."""

    def __post_init__(self) -> None:
        has_decided = is_left_out(self.span.get_span_context())
        self.is_left_out = has_decided and not self.span.is_recording()
        self.context = trace.set_span_in_context(self.span)
        self.ids = ids(self.span.get_span_context())

    def waited(self, until: float) -> float:
        """For how many seconds its messages have waited at this moment."""
        return max(until - self.received_at, 0.0)


@dataclass(slots=True)
class _Ending:
    """A process span whose transaction is still open."""

    span: Span
    ended_ns: int
    has_failed: bool


class _LeftOut:
    """A call of a handler without a process span, because the sampler has decided against the
    batch. This happens to most messages, so it must take little time."""

    __slots__ = ("_batch", "_began", "_clock", "_token", "_told")

    def __init__(self, batch: _Batch, clock: Clock, told: named.Attributes) -> None:
        self._batch = batch
        self._clock = clock
        self._told = told

    def __enter__(self) -> None:
        self._token = attach(self._batch.context)
        self._began = self._clock.monotonic()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        detach(self._token)
        signals, failed = self._batch.signals, ""
        if isinstance(error, Exception):
            failed = named.error_type(error)
            signals.failed(self._batch.span, "process", error)
        signals.measured(self._clock.monotonic() - self._began, self._told, failed)


class Consuming:
    """One lane of a subscription, which works on one batch after another."""

    def __init__(self, recorder: Recorder, subscription: str, messages: Collection[str]) -> None:
        self._recorder = recorder
        self._clock = recorder.clock
        self._subscription = subscription
        self._messages = frozenset(messages)
        self._only_message = next(iter(messages)) if len(messages) == 1 else None
        self._batch: _Batch | None = None
        self._endings: list[_Ending] | None = None
        """None while no transaction is open."""
        self._of_spans: dict[tuple[named.Operation, str | None], tuple[str, named.Attributes]] = {}
        self._of_metrics: dict[tuple[named.Operation, str | None], named.Attributes] = {}

    def receiving(self) -> AbstractContextManager[Callable[[Sequence[Arrived]], None]]:
        """See the port."""
        signals, self._batch = self._recorder.signals, None
        return IGNORING if signals is None else self._receiving(signals)

    def handed_over(self, deliveries: Sequence[Arrived]) -> None:
        """See the port."""
        signals, self._batch = self._recorder.signals, None
        if signals is not None:
            running, now = trace.get_current_span(), self._clock.monotonic()
            self._batch = _Batch(signals, running, now, self._recorder.epoch())
            self._consumed(signals, deliveries, "process")

    def processing(self, deliveries: Sequence[Arrived]) -> AbstractContextManager[None]:
        """See the port."""
        batch = self._batch
        if batch is None:
            return NOTHING
        if batch.is_left_out and not (
            len(deliveries) == 1 and self._recorder.continues(deliveries[0].envelope)
        ):
            told = self._of_metric("process", self._name_of(deliveries))
            return _LeftOut(batch, self._clock, told)
        return self._processing(batch, deliveries)

    def transaction(self) -> AbstractContextManager[None]:
        """See the port."""
        return NOTHING if self._batch is None else self._transaction()

    def not_processed(self, delivery: Arrived, reason: str) -> None:
        """See the port."""
        batch = self._batch
        if batch is not None:
            span = self._start_processing(batch, [delivery], self._clock.monotonic())
            batch.processed[id(delivery)] = span.get_span_context()
            batch.signals.not_processed(span, reason)
            span.end()

    def settling(
        self, settlements: Sequence[tuple[Arrived, Settled]]
    ) -> AbstractContextManager[None]:
        """See the port."""
        if self._batch is None or not settlements:
            return NOTHING
        return self._settling(self._batch, settlements)

    def ids_of(self, delivery: Arrived) -> Mapping[str, str]:
        """See the port."""
        if self._batch is None:
            return NO_IDS
        found = self._batch.processed.get(id(delivery))
        return self._batch.ids if found is None else ids(found)

    @contextmanager
    def _receiving(self, signals: Signals) -> Iterator[Callable[[Sequence[Arrived]], None]]:
        asked = self._clock.monotonic()

        def received(deliveries: Sequence[Arrived]) -> None:
            if deliveries:
                self._received(signals, deliveries, asked)

        try:
            yield received
        except Exception as error:
            self._not_received(signals, error, asked)
            raise

    def _received(self, signals: Signals, deliveries: Sequence[Arrived], asked: float) -> None:
        now, epoch = self._clock.monotonic(), self._recorder.epoch()
        began = asked if now - asked <= LONGEST_PULL else now
        name = self._name_of(deliveries)
        above = below(INVALID_SPAN_CONTEXT)
        span = self._start(signals, "receive", name, above, nanoseconds(began, epoch))
        if span.is_recording():
            describe(span, [(each.envelope, NOTHING_MORE) for each in deliveries], self._of_link)
            self._recorder.tell_peer(span, publishing=False)
            span.end(nanoseconds(now, epoch))
        signals.measured(now - began, self._of_metric("receive", name), "")
        self._consumed(signals, deliveries, "receive")
        self._batch = _Batch(signals, span, now, epoch)

    def _not_received(self, signals: Signals, error: Exception, asked: float) -> None:
        now, epoch = self._clock.monotonic(), self._recorder.epoch()
        began = asked if now - asked <= LONGEST_PULL else now
        name = self._only_message
        above = below(INVALID_SPAN_CONTEXT)
        span = self._start(signals, "receive", name, above, nanoseconds(began, epoch))
        signals.failed(span, "receive", error)
        span.end(nanoseconds(now, epoch))
        failed = named.error_type(error)
        signals.measured(now - began, self._of_metric("receive", name), failed)

    def _consumed(
        self, signals: Signals, deliveries: Sequence[Arrived], operation: named.Operation
    ) -> None:
        if self._only_message is not None:
            told = self._of_metric(operation, self._only_message)
            signals.consumed(len(deliveries), named.for_counter(told))
            return
        for name, count in Counter(self._name_of([each]) for each in deliveries).items():
            signals.consumed(count, named.for_counter(self._of_metric(operation, name)))

    @contextmanager
    def _processing(self, batch: _Batch, deliveries: Sequence[Arrived]) -> Iterator[None]:
        began = self._clock.monotonic()
        span, context = self._start_processing(batch, deliveries, began), batch.context
        if span is not batch.span:
            context = trace.set_span_in_context(span)
            for delivery in deliveries:
                batch.processed[id(delivery)] = span.get_span_context()
        token = attach(context)
        failed = ""
        try:
            yield
        except Exception as error:
            failed = named.error_type(error)
            batch.signals.failed(span, "process", error)
            raise
        finally:
            detach(token)
            ended = self._clock.monotonic()
            if span.is_recording():
                ending = _Ending(span, nanoseconds(ended, batch.epoch), bool(failed))
                if self._endings is None:
                    span.end(ending.ended_ns)
                else:
                    self._endings.append(ending)
            told = self._of_metric("process", self._name_of(deliveries))
            batch.signals.measured(ended - began, told, failed)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        endings: list[_Ending] = []
        self._endings = endings
        try:
            yield
        except BaseException as error:
            for ending in endings:
                ending.span.set_attribute(named.ROLLED_BACK, True)
                if len(endings) == 1 and not ending.has_failed:  # it is the commit that failed
                    mark_failed(ending.span, named.error_type(error), redact_text(str(error)))
            raise
        finally:
            self._endings = None
            for ending in endings:
                ending.span.end(ending.ended_ns)

    @contextmanager
    def _settling(
        self, batch: _Batch, settlements: Sequence[tuple[Arrived, Settled]]
    ) -> Iterator[None]:
        name, began = self._name_of([each for each, _ in settlements]), self._clock.monotonic()
        span = batch.span
        if not batch.is_left_out:
            at = nanoseconds(began, batch.epoch)
            span = self._start(batch.signals, "settle", name, batch.context, at)
        if span.is_recording():
            self._tell_outcomes(span, settlements)
            self._recorder.tell_peer(span, publishing=False)
        failed = ""
        try:
            yield
        except Exception as error:
            failed = named.error_type(error)
            batch.signals.failed(span, "settle", error)
            raise
        finally:
            ended = self._clock.monotonic()
            if span.is_recording():
                span.end(nanoseconds(ended, batch.epoch))
            batch.signals.measured(ended - began, self._of_metric("settle", name), failed)

    def _tell_outcomes(self, span: Span, settlements: Sequence[tuple[Arrived, Settled]]) -> None:
        """One outcome of all is an attribute of the span. Only where outcomes differ, links tell
        which message had which: settle spans need not have links, which take time."""
        kinds = {outcome.kind for _, outcome in settlements}
        told = [(each.envelope, {named.OUTCOME: how.kind}) for each, how in settlements]
        if len(told) > 1 and len(kinds) == 1:
            span.set_attributes({named.BATCH_COUNT: len(told), named.OUTCOME: kinds.pop()})
        else:
            describe(span, told, self._of_link)

    def _start_processing(self, batch: _Batch, deliveries: Sequence[Arrived], began: float) -> Span:
        """The process span of these; that of the batch itself if the sampler has left it out."""
        if len(deliveries) == 1:
            return self._start_processing_one(batch, deliveries[0], began)
        if batch.is_left_out:
            return batch.span
        name, at = self._name_of(deliveries), nanoseconds(began, batch.epoch)
        span = self._start(batch.signals, "process", name, batch.context, at)
        if span.is_recording():
            told = [(each.envelope, _told_of(each)) for each in deliveries]
            describe(span, told, self._of_link)
            span.set_attribute(named.GROUP_WAIT, batch.waited(began))
        return span

    def _start_processing_one(self, batch: _Batch, delivery: Arrived, began: float) -> Span:
        """Below the receive span; or, if the message continues the trace of its creation, below
        that and linked to the receive span."""
        continues = self._recorder.continues(delivery.envelope)
        if batch.is_left_out and not continues:
            return batch.span
        received, origin = batch.span.get_span_context(), creation_of(delivery.envelope)
        if continues and origin.is_valid:
            above, context, linked = origin, below(origin), [origin, received]
        elif batch.is_left_out:
            return batch.span
        else:
            above, context, linked = received, batch.context, [origin]
        likely = above.trace_flags.sampled
        told = _told_of_one(batch, delivery, began) if likely else NOTHING_MORE
        span = self._start(
            batch.signals,
            "process",
            self._name_of([delivery]),
            context,
            nanoseconds(began, batch.epoch),
            [Link(each) for each in linked if each.is_valid],
            told,  # all at once, which takes less time, where it is likely to be recorded
        )
        if not told and span.is_recording():
            span.set_attributes(_told_of_one(batch, delivery, began))
        return span

    def _start(
        self,
        signals: Signals,
        operation: named.Operation,
        name: str | None,
        above: Context,
        at: int,
        links: Sequence[Link] = (),
        told: named.Attributes = NOTHING_MORE,
    ) -> Span:
        """A span below what is current in `above`, from this time in nanoseconds."""
        key = (operation, name)
        found = self._of_spans.get(key)
        if found is None:
            place, subscription = self._recorder.place, self._subscription
            destination = named.destination_of(place, name, subscription)
            found = (
                named.span_name(operation, destination),
                named.of_span(place, operation, name, subscription),
            )
            self._of_spans[key] = found
        span_name, attributes = found
        return signals.tracer.start_span(
            span_name,
            above,
            SpanKind.CONSUMER if operation == "process" else SpanKind.CLIENT,
            {**attributes, **told} if told else attributes,
            links,
            at,
        )

    def _name_of(self, deliveries: Sequence[Arrived]) -> str | None:
        """The name that all of these have; None where they differ. Names that nobody subscribes to,
        which anybody can make up, count as none, too: spans are counted by their names."""
        if self._only_message is not None:
            return self._only_message
        name = named.common_name([each.envelope for each in deliveries])
        return name if name in self._messages else None

    def _of_metric(self, operation: named.Operation, name: str | None) -> named.Attributes:
        key = (operation, name)
        found = self._of_metrics.get(key)
        if found is None:
            place, subscription = self._recorder.place, self._subscription
            found = named.of_operation(place, operation, name, subscription)
            self._of_metrics[key] = found
        return found

    def _of_link(self, name: str) -> named.Attributes:
        known = name if name in self._messages else None
        return named.of_link(self._recorder.place, known, self._subscription) if known else {}


def _told_of(delivery: Arrived) -> dict[str, named.Value]:
    """What a process span says of a message."""
    told = named.of_message(delivery.envelope)
    told[named.ATTEMPT] = delivery.attempt
    return told


def _told_of_one(batch: _Batch, delivery: Arrived, began: float) -> dict[str, named.Value]:
    """What it says where it is about this message alone."""
    told = _told_of(delivery)
    told[named.GROUP_WAIT] = batch.waited(began)
    return told
