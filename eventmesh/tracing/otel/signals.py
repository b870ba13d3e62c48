"""The tracer, the instruments and the logger of the application's providers."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.trace import Span, Status, StatusCode

from eventmesh.redact import redact_text
from eventmesh.tracing import conventions as named
from eventmesh.tracing.otel.contexts import below

_SCOPE = "eventmesh"
_OF_THE_API = ("opentelemetry.trace", "opentelemetry.metrics", "opentelemetry._logs")
"""Where the providers are from that do nothing."""


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers of an application; those that are None are OpenTelemetry's global ones."""

    tracer: trace.TracerProvider | None = None
    meter: metrics.MeterProvider | None = None
    logger: _logs.LoggerProvider | None = None

    def is_any_configured(self) -> bool:
        """Whether anything would be recorded."""
        return any(
            not type(provider).__module__.startswith(_OF_THE_API)
            for provider in (
                self.tracer or trace.get_tracer_provider(),
                self.meter or metrics.get_meter_provider(),
                self.logger or _logs.get_logger_provider(),
            )
        )


class Signals:
    """Spans, metrics and events. What has no provider of its own does nothing."""

    def __init__(self, providers: Providers, version: str) -> None:
        self.tracer = trace.get_tracer(_SCOPE, version, providers.tracer, named.SCHEMA_URL)
        self._logger = _logs.get_logger(_SCOPE, version, providers.logger, named.SCHEMA_URL)
        meter = metrics.get_meter(_SCOPE, version, providers.meter, named.SCHEMA_URL)
        self._operation_duration = meter.create_histogram(
            named.OPERATION_DURATION,
            unit="s",
            description="Duration of a messaging operation: send, receive or settle.",
            explicit_bucket_boundaries_advisory=named.SECONDS,
        )
        self._process_duration = meter.create_histogram(
            named.PROCESS_DURATION,
            unit="s",
            description="Duration of a handler's call.",
            explicit_bucket_boundaries_advisory=named.SECONDS,
        )
        self._sent = meter.create_counter(
            named.SENT_MESSAGES,
            unit="{message}",
            description="Messages that were sent to the broker, or that it did not take.",
        )
        self._consumed = meter.create_counter(
            named.CONSUMED_MESSAGES,
            unit="{message}",
            description="Messages that were delivered to the application.",
        )

    def measured(self, seconds: float, attributes: named.Attributes, error: str) -> None:
        """An operation took so long, and ended with an error of this type, or with none."""
        is_process = attributes[named.OPERATION_TYPE] == "process"
        duration = self._process_duration if is_process else self._operation_duration
        duration.record(seconds, named.with_error(attributes, error))

    def sent(self, count: int, attributes: named.Attributes, error: str) -> None:
        """So many messages were sent to one destination, with one answer."""
        self._sent.add(count, named.with_error(attributes, error))

    def consumed(self, count: int, attributes: named.Attributes) -> None:
        """So many messages were delivered from one source."""
        self._consumed.add(count, attributes)

    def failed(self, span: Span, operation: named.Operation, error: Exception) -> None:
        """The operation of this span ended with this error."""
        # Also of an error whose `__str__` fails.
        message = redact_text(str(traceback.TracebackException(type(error), error, None)))
        mark_failed(span, named.error_type(error), message)

        def exception() -> named.Attributes:
            return {
                named.EXCEPTION_TYPE: named.error_type(error),
                named.EXCEPTION_MESSAGE: message,
                named.EXCEPTION_STACKTRACE: redact_text("".join(traceback.format_exception(error))),
            }

        self._emit(span, operation, exception)

    def not_processed(self, span: Span, reason: str) -> None:
        """The message of this span became a dead letter before its handler was called."""
        mark_failed(span, named.NOT_PROCESSED, redact_text(reason))
        self._emit(span, "process", lambda: {named.EXCEPTION_MESSAGE: redact_text(reason)})

    def _emit(
        self, span: Span, operation: named.Operation, exception: Callable[[], named.Attributes]
    ) -> None:
        """Record the exception of a span as an event, where events are kept."""
        event = f"messaging.{operation}.exception"
        severity = SeverityNumber.ERROR if operation == "process" else SeverityNumber.WARN
        context = below(span.get_span_context())
        if self._logger.enabled(context=context, severity_number=severity, event_name=event):
            self._logger.emit(
                context=context,
                severity_number=severity,
                event_name=event,
                attributes=exception(),
            )


def mark_failed(span: Span, error: str, description: str) -> None:
    """The span ended with an error of this type."""
    if span.is_recording():
        span.set_attribute(named.ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, description))
