"""What OpenTelemetry is told, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from eventmesh.runtime.declaring.service import DeclaredService
from tests.support.messaging_conventions import event_problems, metric_problems, span_problems


class Traced:
    """The providers of an application, and what they were told."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._spans, self._logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self._metrics = InMemoryMetricReader()
        self.tracers = TracerProvider(
            sampler=sampler, span_limits=SpanLimits(max_links=1_000), shutdown_on_exit=False
        )
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.loggers = LoggerProvider(shutdown_on_exit=False)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        self.meters = MeterProvider(metric_readers=[self._metrics], shutdown_on_exit=False)

    def trace(self, *services: DeclaredService) -> None:
        """Record what these services do."""
        for service in services:
            service.trace_with(tracer=self.tracers, meter=self.meters, logger=self.loggers)

    def spans(self, operation: str = "") -> Sequence[ReadableSpan]:
        """The spans that have ended, of this operation, with or without a destination."""
        return [
            span
            for span in self._spans.get_finished_spans()
            if not operation or f"{span.name} ".startswith(f"{operation} ")
        ]

    def events(self) -> Sequence[ReadableLogRecord]:
        return self._logs.get_finished_logs()

    def metrics(self) -> dict[str, Metric]:
        data = self._metrics.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def counts(self, metric: str, *names: str) -> dict[tuple[Any, ...], int]:
        """The values of a counter, or how often a histogram was told something, by attributes."""
        found: dict[tuple[Any, ...], int] = {}
        if metric in self.metrics():
            for point in self.metrics()[metric].data.data_points:
                key = tuple((point.attributes or {}).get(name) for name in names)
                count = getattr(point, "count", None) or getattr(point, "value", 0)
                found[key] = found.get(key, 0) + count
        return found

    def problems(self) -> list[str]:
        """What was told against the conventions."""
        return [
            *(problem for span in self.spans() for problem in span_problems(span)),
            *(problem for metric in self.metrics().values() for problem in metric_problems(metric)),
            *(problem for event in self.events() for problem in event_problems(event)),
        ]

    def close(self) -> None:
        self.tracers.shutdown()
        self.loggers.shutdown()
        self.meters.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    """The ids of a span, as they are in links to it."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def linked(span: ReadableSpan) -> set[tuple[int, int]]:
    """The ids of the spans that this one is linked to."""
    return {(link.context.trace_id, link.context.span_id) for link in span.links}
