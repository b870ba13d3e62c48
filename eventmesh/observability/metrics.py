"""The Prometheus metrics of a worker, computed when /metrics is requested.

The worker counts in plain attributes (`runtime.vitals`); this module reads them, and asks the
broker and the databases for queue sizes and ages. A server that does not answer is left out, and
its metrics are missing instead of wrong.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from eventmesh.errors import EventMeshError
from eventmesh.persistence.sagas import SagaLot
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.readiness import (
    ANSWER_TIMEOUT,
    open_sagas,
    outbox_age,
    parked_messages,
    problems,
)
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import SubscriptionStats

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _ServerStats:
    """Answers of the broker and the databases; those that did not answer are left out."""

    is_ready: bool
    stats: dict[str, SubscriptionStats]
    outbox_ages: dict[str, float]
    outbox_parked: dict[str, int]
    sagas: dict[str, list[SagaLot]]


class WorkerMetrics:
    """The metrics of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    async def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        families = _WorkerCollector(self._worker, await self._server_stats())
        registry = CollectorRegistry()
        registry.register(families)
        return generate_latest(self._registry) + generate_latest(registry)

    async def _server_stats(self) -> _ServerStats:
        subscriptions = [each.subscription for each in self._worker.vitals.subscriptions]
        services = [each for each in self._worker.services if each.needs_database]
        owners = [each for each in services if each.sagas]
        found, stats, ages, parked, sagas = await asyncio.gather(
            problems(self._worker, outbox_max_age=self._worker.settings.outbox_max_age),
            asyncio.gather(
                *(_or_none(self._worker.transport.stats(each)) for each in subscriptions)
            ),
            asyncio.gather(*(_or_none(outbox_age(each)) for each in services)),
            asyncio.gather(*(_or_none(parked_messages(each)) for each in services)),
            asyncio.gather(*(_or_none(open_sagas(each)) for each in owners)),
        )
        return _ServerStats(
            not found,
            {
                subscription.name: each
                for subscription, each in zip(subscriptions, stats, strict=True)
                if each is not None
            },
            {
                service.name: age
                for service, age in zip(services, ages, strict=True)
                if age is not None
            },
            {
                service.name: count
                for service, count in zip(services, parked, strict=True)
                if count is not None
            },
            {
                service.name: lots
                for service, lots in zip(owners, sagas, strict=True)
                if lots is not None
            },
        )


class _WorkerCollector(Collector):
    def __init__(self, worker: Worker, stats: _ServerStats) -> None:
        self._vitals = worker.vitals
        self._services = worker.services
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        subscriptions = self._vitals.subscriptions
        yield from _counts(subscriptions)
        yield self._ready()
        yield from _states(subscriptions)
        yield from _broker(subscriptions, self._stats.stats)
        yield from self._relays()
        yield from self._unrouted()
        yield from _sagas(self._stats.sagas)
        yield _unmatched(self._services)

    def _ready(self) -> Metric:
        ready = GaugeMetricFamily(
            "eventmesh_ready", "1 while the process is ready, as /readyz says.", labels=["service"]
        )
        for service in self._services:
            ready.add_metric([service.name], self._stats.is_ready)
        return ready

    def _relays(self) -> Iterator[Metric]:
        relayed = CounterMetricFamily(
            "eventmesh_outbox_relayed",
            "Messages that the broker has confirmed.",
            labels=["service"],
        )
        rejected = CounterMetricFamily(
            "eventmesh_outbox_rejected", "Messages that the broker rejected.", labels=["service"]
        )
        for relay in self._vitals.relays:
            relayed.add_metric([relay.service], relay.relayed)
            rejected.add_metric([relay.service], relay.rejected)
        age = GaugeMetricFamily(
            "eventmesh_outbox_oldest_seconds",
            "How long the oldest message that could be published has waited in the outbox.",
            labels=["service"],
        )
        for service, seconds in self._stats.outbox_ages.items():
            age.add_metric([service], seconds)
        parked = GaugeMetricFamily(
            "eventmesh_outbox_parked",
            "Messages that the broker rejected too often. They block later ones of their keys.",
            labels=["service"],
        )
        for service, count in self._stats.outbox_parked.items():
            parked.add_metric([service], count)
        yield from (relayed, rejected, age, parked)

    def _unrouted(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "eventmesh_unrouted_messages",
            "Messages that the service publishes and no subscription receives, counted once a "
            "minute by one process of the service. All services report the same foreign messages.",
            labels=["service", "message"],
        )
        purged = CounterMetricFamily(
            "eventmesh_unrouted_purged",
            "Unrouted messages deleted because they exceeded the limit.",
            labels=["service", "message"],
        )
        for relay in self._vitals.relays:
            for message, number in relay.unrouted.items():
                waiting.add_metric([relay.service, message], number)
            for message, number in relay.unrouted_purged.items():
                purged.add_metric([relay.service, message], number)
        yield from (waiting, purged)


def _sagas(sagas: Mapping[str, Sequence[SagaLot]]) -> Iterable[Metric]:
    labels = ["service", "saga", "status", "step"]
    number = GaugeMetricFamily(
        "eventmesh_sagas", "Open sagas, by the steps that they wait for.", labels=labels
    )
    oldest = GaugeMetricFamily(
        "eventmesh_saga_oldest_seconds", "How long ago the oldest of them began.", labels=labels
    )
    overdue = GaugeMetricFamily(
        "eventmesh_sagas_overdue",
        "Open sagas, without parked ones, that had to time out a minute ago and have not.",
        labels=["service", "saga"],
    )
    for service, lots in sagas.items():
        late: Counter[str] = Counter()
        for lot in lots:
            values = [service, lot.name, lot.status, lot.waiting_for]
            number.add_metric(values, lot.count)
            oldest.add_metric(values, lot.age)
            late[lot.name] += lot.overdue
        for name, count in late.items():
            overdue.add_metric([service, name], count)
    return number, oldest, overdue


def _unmatched(services: Sequence[Service]) -> Metric:
    unmatched = CounterMetricFamily(
        "eventmesh_saga_unmatched_events",
        "Events that a saga subscribes to and that belong to no open saga.",
        labels=["service", "saga", "message"],
    )
    for service in services:
        for name, coordinator in service.sagas.items():
            for message, count in coordinator.unmatched_events().items():
                unmatched.add_metric([service.name, name, message], count)
    return unmatched


_LABELS = ["service", "subscription"]


def _labels(vitals: SubscriptionVitals) -> list[str]:
    return [vitals.service, vitals.subscription.name]


def _counts(subscriptions: Sequence[SubscriptionVitals]) -> Iterable[Metric]:
    settled = CounterMetricFamily(
        "eventmesh_deliveries",
        "Settled deliveries by outcome: done, retried or dead.",
        labels=[*_LABELS, "outcome"],
    )
    duplicates = CounterMetricFamily(
        "eventmesh_duplicates",
        "Deliveries skipped because the message had taken effect before.",
        labels=_LABELS,
    )
    batches = CounterMetricFamily("eventmesh_batches", "Batches handled.", labels=_LABELS)
    seconds = CounterMetricFamily(
        "eventmesh_batch_seconds", "Seconds spent handling batches.", labels=_LABELS
    )
    losses = CounterMetricFamily(
        "eventmesh_interruptions",
        "How often the broker or the database was lost.",
        labels=_LABELS,
    )
    for vitals in subscriptions:
        for outcome, count in vitals.outcomes.items():
            settled.add_metric([*_labels(vitals), outcome], count)
        duplicates.add_metric(_labels(vitals), vitals.duplicates)
        batches.add_metric(_labels(vitals), vitals.batches)
        seconds.add_metric(_labels(vitals), vitals.batch_seconds)
        losses.add_metric(_labels(vitals), vitals.interruptions)
    return settled, duplicates, batches, seconds, losses


def _states(subscriptions: Sequence[SubscriptionVitals]) -> Iterable[Metric]:
    consuming = GaugeMetricFamily(
        "eventmesh_consuming",
        "1 while the subscription is consumed and makes progress.",
        labels=_LABELS,
    )
    paused = GaugeMetricFamily(
        "eventmesh_paused", "1 while an operator has paused the subscription.", labels=_LABELS
    )
    busy = GaugeMetricFamily(
        "eventmesh_busy_seconds",
        "Seconds that the longest-running batch has taken so far.",
        labels=_LABELS,
    )
    for vitals in subscriptions:
        consuming.add_metric(_labels(vitals), not vitals.why_not_consuming)
        paused.add_metric(_labels(vitals), bool(vitals.paused))
        busy.add_metric(_labels(vitals), vitals.busy_seconds)
    return consuming, paused, busy


def _broker(
    subscriptions: Sequence[SubscriptionVitals], stats: dict[str, SubscriptionStats]
) -> Iterable[Metric]:
    messages = GaugeMetricFamily(
        "eventmesh_messages",
        "Messages that the broker holds for the subscription, by state.",
        labels=[*_LABELS, "state"],
    )
    oldest = GaugeMetricFamily(
        "eventmesh_oldest_seconds",
        "Age of the oldest message that could be delivered now.",
        labels=_LABELS,
    )
    held = GaugeMetricFamily(
        "eventmesh_held_messages",
        "Delayed messages that wait behind an earlier one of their key.",
        labels=_LABELS,
    )
    for vitals in subscriptions:
        answer = stats.get(vitals.subscription.name)
        if answer is None:
            continue
        for state in ("ready", "delayed", "in_flight", "dead"):
            count = getattr(answer, state)
            if count is not None:  # the broker does not know this number
                messages.add_metric([*_labels(vitals), state], count)
        if answer.oldest_age is not None:
            oldest.add_metric(_labels(vitals), answer.oldest_age)
        if vitals.subscription.order is not None and answer.held is not None:
            held.add_metric(_labels(vitals), answer.held)
    return messages, oldest, held


async def _or_none(answer: Awaitable[T]) -> T | None:
    """The answer of a server, or None if it does not answer."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await answer
    except (EventMeshError, TimeoutError):
        return None
