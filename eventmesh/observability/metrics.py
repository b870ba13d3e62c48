"""A worker's vitals as Prometheus metrics, read when they are asked for: counting costs the worker
nothing but what its vitals do anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from eventmesh.errors import EventMeshError
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.readiness import ANSWER_TIMEOUT, outbox_age
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import SubscriptionStats

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What servers said when they were asked for metrics; what did not answer is left out."""

    stats: dict[str, SubscriptionStats]
    outbox_ages: dict[str, float]


class WorkerMetrics:
    """The metrics of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    async def text(self) -> bytes:
        """All of them, in the format that Prometheus reads."""
        families = _WorkerCollector(self._worker, await self._ask())
        registry = CollectorRegistry()
        registry.register(families)
        return generate_latest(self._registry) + generate_latest(registry)

    async def _ask(self) -> _Asked:
        subscriptions = [each.subscription for each in self._worker.vitals.subscriptions]
        services = [each for each in self._worker.services if each.needs_database]
        stats, ages = await asyncio.gather(
            asyncio.gather(
                *(_or_none(self._worker.transport.stats(each)) for each in subscriptions)
            ),
            asyncio.gather(*(_or_none(outbox_age(each)) for each in services)),
        )
        return _Asked(
            {
                subscription.name: said
                for subscription, said in zip(subscriptions, stats, strict=True)
                if said is not None
            },
            {
                service.name: age
                for service, age in zip(services, ages, strict=True)
                if age is not None
            },
        )


class _WorkerCollector(Collector):
    def __init__(self, worker: Worker, asked: _Asked) -> None:
        self._vitals = worker.vitals
        self._asked = asked

    def collect(self) -> Iterator[Metric]:
        subscriptions = self._vitals.subscriptions
        yield from _counts(subscriptions)
        yield from _states(subscriptions)
        yield from _broker(subscriptions, self._asked.stats)
        yield from self._relays()
        yield from self._unrouted()

    def _relays(self) -> Iterator[Metric]:
        relayed = CounterMetricFamily(
            "eventmesh_outbox_relayed",
            "Messages that the broker has confirmed.",
            labels=["service"],
        )
        refused = CounterMetricFamily(
            "eventmesh_outbox_refused", "Messages that the broker did not take.", labels=["service"]
        )
        for relay in self._vitals.relays:
            relayed.add_metric([relay.service], relay.relayed)
            refused.add_metric([relay.service], relay.refused)
        age = GaugeMetricFamily(
            "eventmesh_outbox_oldest_seconds",
            "For how long the oldest message in the outbox could have been relayed.",
            labels=["service"],
        )
        for service, seconds in self._asked.outbox_ages.items():
            age.add_metric([service], seconds)
        yield from (relayed, refused, age)

    def _unrouted(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "eventmesh_unrouted_messages",
            "Messages that the service publishes and no subscription takes, as counted in the last "
            "minute; reported by one process of the service. All services report the same "
            "foreign messages.",
            labels=["service", "message"],
        )
        purged = CounterMetricFamily(
            "eventmesh_unrouted_purged",
            "Unrouted messages that were deleted, because they were more than the limit.",
            labels=["service", "message"],
        )
        for relay in self._vitals.relays:
            for message, number in relay.unrouted.items():
                waiting.add_metric([relay.service, message], number)
            for message, number in relay.unrouted_purged.items():
                purged.add_metric([relay.service, message], number)
        yield from (waiting, purged)


_LABELS = ["service", "subscription"]


def _labels(vitals: SubscriptionVitals) -> list[str]:
    return [vitals.service, vitals.subscription.name]


def _counts(subscriptions: Sequence[SubscriptionVitals]) -> Iterable[Metric]:
    settled = CounterMetricFamily(
        "eventmesh_deliveries",
        "Deliveries settled: done, retried or dead.",
        labels=[*_LABELS, "outcome"],
    )
    duplicates = CounterMetricFamily(
        "eventmesh_duplicates", "Deliveries that had taken effect before.", labels=_LABELS
    )
    batches = CounterMetricFamily("eventmesh_batches", "Batches handled.", labels=_LABELS)
    seconds = CounterMetricFamily(
        "eventmesh_batch_seconds", "Time spent in handling batches.", labels=_LABELS
    )
    losses = CounterMetricFamily(
        "eventmesh_interruptions", "How often a server was lost and waited for.", labels=_LABELS
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
        "eventmesh_consuming", "1 while the subscription is consumed and gets on.", labels=_LABELS
    )
    busy = GaugeMetricFamily(
        "eventmesh_busy_seconds",
        "How long the batch that is being handled the longest has taken.",
        labels=_LABELS,
    )
    for vitals in subscriptions:
        consuming.add_metric(_labels(vitals), not vitals.why_not_consuming)
        busy.add_metric(_labels(vitals), vitals.busy_seconds)
    return consuming, busy


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
    for vitals in subscriptions:
        said = stats.get(vitals.subscription.name)
        if said is None:
            continue
        for state in ("ready", "delayed", "in_flight", "dead"):
            count = getattr(said, state)
            if count is not None:  # a broker that cannot tell is not said to have none
                messages.add_metric([*_labels(vitals), state], count)
        if said.oldest_age is not None:
            oldest.add_metric(_labels(vitals), said.oldest_age)
    return messages, oldest


async def _or_none(answer: Awaitable[T]) -> T | None:
    """What a server answers; None when it does not."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await answer
    except (EventMeshError, TimeoutError):
        return None
