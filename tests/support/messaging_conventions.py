"""OpenTelemetry's semantic conventions for messaging, version 1.45, as a checker of what was
recorded.

The rules are those of `model/messaging/spans.yaml`, `metrics.yaml` and `events.yaml` of the
repository open-telemetry/semantic-conventions, and of the pages that are made from them. Names come
from the package opentelemetry-semantic-conventions, so that a misspelt one cannot be right twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import Histogram, Metric, Sum
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import cloudevents_attributes as cloudevents
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv._incubating.metrics import messaging_metrics as metrics
from opentelemetry.semconv.attributes import (
    error_attributes,
    exception_attributes,
    network_attributes,
    server_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode

from eventmesh.tracing import conventions

SCHEMA_URL = "https://opentelemetry.io/schemas/1.45.0"

COMMON = {
    error_attributes.ERROR_TYPE,
    messaging.MESSAGING_SYSTEM,
    messaging.MESSAGING_OPERATION_NAME,
    messaging.MESSAGING_OPERATION_TYPE,
    messaging.MESSAGING_DESTINATION_NAME,
    messaging.MESSAGING_DESTINATION_TEMPLATE,
    messaging.MESSAGING_DESTINATION_PARTITION_ID,
    messaging.MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY,
    server_attributes.SERVER_ADDRESS,
    server_attributes.SERVER_PORT,
}
PER_MESSAGE = {
    messaging.MESSAGING_MESSAGE_ID,
    messaging.MESSAGING_MESSAGE_CONVERSATION_ID,
    cloudevents.CLOUDEVENTS_EVENT_TYPE,
}
OF_CONSUMERS = {
    messaging.MESSAGING_DESTINATION_SUBSCRIPTION_NAME,
    messaging.MESSAGING_CONSUMER_GROUP_NAME,
}
OF_NETWORK = {network_attributes.NETWORK_PEER_ADDRESS, network_attributes.NETWORK_PEER_PORT}
BATCH = messaging.MESSAGING_BATCH_MESSAGE_COUNT
OUR_OWN = {
    name: value
    for name, value in vars(conventions).items()
    if name.isupper() and str(value).startswith("eventmesh.")
}


@dataclass(frozen=True)
class SpanRule:
    kind: SpanKind
    may_be_batch: bool
    allowed: frozenset[str]


SPANS = {
    "create": SpanRule(SpanKind.PRODUCER, False, frozenset(COMMON | PER_MESSAGE)),
    # CLIENT, because there are create spans, whose contexts the messages carry.
    "send": SpanRule(SpanKind.CLIENT, True, frozenset(COMMON | PER_MESSAGE | OF_NETWORK | {BATCH})),
    **{
        operation: SpanRule(
            kind, True, frozenset(COMMON | PER_MESSAGE | OF_CONSUMERS | {BATCH} | of_network)
        )
        for operation, kind, of_network in (
            ("receive", SpanKind.CLIENT, OF_NETWORK),
            ("process", SpanKind.CONSUMER, frozenset()),
            ("settle", SpanKind.CLIENT, OF_NETWORK),
        )
    },
}

_OF_DURATIONS = COMMON - {messaging.MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY}
_OF_METRICS = _OF_DURATIONS - {messaging.MESSAGING_OPERATION_TYPE}
METRICS: Mapping[str, tuple[type, str, frozenset[str]]] = {
    metrics.MESSAGING_CLIENT_OPERATION_DURATION: (
        Histogram,
        "s",
        frozenset(_OF_DURATIONS | OF_CONSUMERS),
    ),
    metrics.MESSAGING_PROCESS_DURATION: (
        Histogram,
        "s",
        frozenset(_OF_DURATIONS | OF_CONSUMERS),
    ),
    metrics.MESSAGING_CLIENT_SENT_MESSAGES: (Sum, "{message}", frozenset(_OF_METRICS)),
    metrics.MESSAGING_CLIENT_CONSUMED_MESSAGES: (
        Sum,
        "{message}",
        frozenset(_OF_METRICS | OF_CONSUMERS),
    ),
}
BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


def span_problems(span: ReadableSpan) -> list[str]:
    """What a span does against the conventions."""
    attributes = dict(span.attributes or {})
    operation = str(attributes.get(messaging.MESSAGING_OPERATION_TYPE))
    rule = SPANS.get(operation)
    if rule is None:
        return [f"{span.name}: no such operation: {operation}"]
    problems = []
    destination = attributes.get(messaging.MESSAGING_DESTINATION_NAME)
    name = attributes.get(messaging.MESSAGING_OPERATION_NAME)
    if span.name != f"{name} {destination}" and (destination or span.name != name):
        problems.append(f"is not named {name} {destination}")
    if span.kind is not rule.kind:
        problems.append(f"has the kind {span.kind}")
    for required in (messaging.MESSAGING_SYSTEM, messaging.MESSAGING_OPERATION_NAME):
        if not attributes.get(required):
            problems.append(f"lacks {required}")
    if attributes.get(messaging.MESSAGING_SYSTEM) == "rabbitmq":
        problems += _rabbitmq_problems(operation, attributes)
    if BATCH in attributes:
        if not rule.may_be_batch or attributes[BATCH] in (0, 1):
            problems.append("has a count, and is not a batch")
        if set(attributes) & PER_MESSAGE:
            problems.append("has attributes of one message, and is a batch")
        if len(span.links) > int(str(attributes[BATCH])):
            problems.append("has more links than messages")
    elif messaging.MESSAGING_MESSAGE_ID not in attributes and not _has_failed(span):
        problems.append("names neither a message nor how many")
    if (error_attributes.ERROR_TYPE in attributes) != _has_failed(span):
        problems.append("has an error type without an error, or the other way round")
    if span.events:
        problems.append("has events, which are recorded as logs now")
    scope = span.instrumentation_scope
    if scope is None or (scope.name, scope.schema_url) != ("eventmesh", SCHEMA_URL):
        problems.append(f"has the scope {scope}")
    problems += _unknown(attributes, rule.allowed)
    for link in span.links:
        linked = PER_MESSAGE | {
            messaging.MESSAGING_DESTINATION_NAME,
            messaging.MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY,
        }
        problems += _unknown(link.attributes or {}, linked)
    return [f"{span.name}: {problem}" for problem in problems]


def metric_problems(metric: Metric) -> list[str]:
    """What a metric does against the conventions."""
    if metric.name not in METRICS:
        return [f"{metric.name}: no such metric"]
    kind, unit, allowed = METRICS[metric.name]
    problems = []
    if not isinstance(metric.data, kind) or metric.unit != unit:
        problems.append(f"is a {type(metric.data).__name__} in {metric.unit}")
    for point in metric.data.data_points:
        attributes = dict(point.attributes or {})
        for required in (messaging.MESSAGING_SYSTEM, messaging.MESSAGING_OPERATION_NAME):
            if not attributes.get(required):
                problems.append(f"lacks {required}")
        problems += _unknown(attributes, allowed)
        if kind is Histogram and tuple(point.explicit_bounds) != BOUNDARIES:
            problems.append(f"has the buckets {point.explicit_bounds}")
        is_process = attributes.get(messaging.MESSAGING_OPERATION_TYPE) == "process"
        if kind is Histogram and is_process != (metric.name == metrics.MESSAGING_PROCESS_DURATION):
            problems.append("mixes processing with other operations")
    return [f"{metric.name}: {problem}" for problem in problems]


def event_problems(event: ReadableLogRecord) -> list[str]:
    """What the event of an exception does against the conventions."""
    record = event.log_record
    attributes: Mapping[str, Any] = record.attributes or {}
    name, problems = str(record.event_name), []
    operation = name.removeprefix("messaging.").removesuffix(".exception")
    if name != f"messaging.{operation}.exception" or operation not in SPANS:
        problems.append("no such event")
    expected = 17 if operation == "process" else 13
    if record.severity_number is None or record.severity_number.value != expected:
        problems.append(f"has the severity {record.severity_number}")
    known = {
        exception_attributes.EXCEPTION_TYPE,
        exception_attributes.EXCEPTION_MESSAGE,
        exception_attributes.EXCEPTION_STACKTRACE,
    }
    if not attributes or set(attributes) - known:
        problems.append(f"has the attributes {sorted(attributes)}")
    return [f"{name}: {problem}" for problem in problems]


def _rabbitmq_problems(operation: str, attributes: Mapping[str, Any]) -> Iterable[str]:
    """What the page on RabbitMQ asks for besides; its send span includes our create span."""
    destination = str(attributes.get(messaging.MESSAGING_DESTINATION_NAME, ""))
    if not destination:
        yield "lacks the destination, which RabbitMQ always has"
    routing_key = attributes.get(messaging.MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY)
    if operation != "settle" and ":" in destination:
        if destination.split(":")[1] != routing_key:
            yield f"has the routing key {routing_key}"
    elif routing_key is not None:
        yield "has a routing key that is not for it"


def _has_failed(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def _unknown(attributes: Mapping[str, Any], allowed: Iterable[str]) -> list[str]:
    return [
        f"has {name}, which is not for it"
        for name in attributes
        if name not in allowed and name not in OUR_OWN.values()
    ]
