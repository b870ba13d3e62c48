"""What several parts answer, as one answer."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from eventmesh.transports.base import (
    ALL_CONFIRMED,
    DeadLetter,
    PublishResult,
    SubscriptionStats,
    Unrouted,
)
from eventmesh.transports.dead_letters import UniqueDeadLetters
from eventmesh.transports.facts import (
    BrokerFacts,
    KnownSubscription,
    RedisFacts,
    StreamFacts,
)


def merged_results(results: Iterable[PublishResult]) -> PublishResult:
    """What became of a batch of which each part got some messages."""
    failed = [each for each in results if each.rejected or each.error is not None]
    if not failed:
        return ALL_CONFIRMED
    return PublishResult(
        {id_: reason for each in failed for id_, reason in each.rejected.items()},
        frozenset[str]().union(*(each.unconfirmed for each in failed)),
        next((each.error for each in failed if each.error is not None), None),
    )


def merged_stats(stats: Sequence[SubscriptionStats]) -> SubscriptionStats:
    """The sums. Every worker consumes all parts, so workers are not added up."""
    if len(stats) == 1:
        return stats[0]
    ages = [each.oldest_age for each in stats if each.oldest_age is not None]
    return SubscriptionStats(
        ready=sum(each.ready for each in stats),
        delayed=_sum(each.delayed for each in stats),
        in_flight=_sum(each.in_flight for each in stats),
        dead=sum(each.dead for each in stats),
        oldest_age=max(ages, default=None),
        consumers=max(each.consumers or 0 for each in stats),
        declared=all(each.declared for each in stats),
        held=_sum(each.held for each in stats),
    )


def merged_unrouted(found: Iterable[Sequence[Unrouted]]) -> list[Unrouted]:
    """The numbers by name, and the ages of the oldest."""
    merged: dict[str, Unrouted] = {}
    for each in (one for of_part in found for one in of_part):
        before = merged.get(each.message, Unrouted(each.message, 0, 0.0))
        merged[each.message] = Unrouted(
            each.message,
            before.number + each.number,
            max(before.oldest_age or 0.0, each.oldest_age or 0.0),
        )
    return [merged[name] for name in sorted(merged)]


def kept_of_each(numbers: Sequence[int], keep: int) -> list[int]:
    """How many of its newest messages each part keeps, `keep` in total: a share of those that it
    has. For example, of 30 and 10 messages, 12 are kept as 9 and 3."""
    total = sum(numbers)
    if total <= keep:
        return list(numbers)
    shares = [number * keep // total for number in numbers]
    by_remainder = sorted(
        range(len(numbers)), key=lambda part: numbers[part] * keep % total, reverse=True
    )
    for part in by_remainder[: keep - sum(shares)]:
        shares[part] += 1
    return shares


# --- dead letters ---


def ids_by_part(ids: Iterable[str], parts: int) -> list[Mapping[str, str]]:
    """For each part, those of its letters' ids that are among these, by the id inside of it."""
    if parts == 1:
        return [{id_: id_ for id_ in ids}]
    of_part: list[dict[str, str]] = [{} for _ in range(parts)]
    number_of = {str(number): number for number in range(parts)}
    for id_ in ids:
        number, _, inside = id_.partition("-")
        if number in number_of:
            of_part[number_of[number]][inside] = id_
    return [*of_part]


def merged_letters(
    letters: Sequence[Sequence[DeadLetter]],
    limit: int,
    most_bytes: int | None,
    only: Collection[str] | None,
) -> Sequence[DeadLetter]:
    """The oldest letters of all parts, by the time when Redis added them. Of several parts, their
    ids begin with the number of the part: `2-1700000000000-0`."""
    if len(letters) == 1:
        return letters[0]
    numbered = [
        [replace(letter, id=f"{part}-{letter.id}") for letter in some]
        for part, some in enumerate(letters)
    ]
    listing = UniqueDeadLetters(limit, most_bytes, only)
    return listing.add_all(heapq.merge(*numbered, key=_added))


def _added(letter: DeadLetter) -> tuple[int, int]:
    _, milliseconds, sequence = letter.id.split("-")
    return int(milliseconds), int(sequence)


# --- facts ---


def merged_facts(facts: Sequence[BrokerFacts]) -> BrokerFacts:
    """What is true of all parts, or else the worst."""
    if len(facts) == 1:
        return facts[0]
    clocks = [each.clock_ahead for each in facts if each.clock_ahead is not None]
    versions = [each.version for each in facts if each.version is not None]
    forbidden = [each.forbidden for each in facts]
    unknown: dict[str, str] = {}
    for each in facts:
        unknown |= each.unknown
    return BrokerFacts(
        min(versions, key=_numbers_of_version, default=None),
        max(clocks, key=abs, default=None),
        unknown=unknown,
        subscriptions=_merged_subscriptions([each.subscriptions for each in facts]),
        forbidden=None
        if None in forbidden
        else tuple(sorted({one for some in forbidden for one in some or ()})),
        streams=_merged_streams([each.streams for each in facts]),
        redis=_worst([each.redis for each in facts if each.redis is not None]),
    )


def _merged_subscriptions(
    of_parts: Sequence[tuple[KnownSubscription, ...] | None],
) -> tuple[KnownSubscription, ...] | None:
    if None in of_parts:
        return None
    by_name: dict[str, list[KnownSubscription]] = {}
    for each in (one for some in of_parts for one in some or ()):
        by_name.setdefault(each.name, []).append(each)
    return tuple(
        KnownSubscription(
            name,
            _sum([each.waiting for each in found]),
            {
                message: _sum([each.by_message.get(message, 0) for each in found])
                for message in sorted({one for each in found for one in each.by_message})
            },
        )
        for name, found in sorted(by_name.items())
    )


def _merged_streams(
    of_parts: Sequence[tuple[StreamFacts, ...] | None],
) -> tuple[StreamFacts, ...] | None:
    if None in of_parts:
        return None
    streams: dict[str, list[StreamFacts]] = {}
    for each in (one for some in of_parts for one in some or ()):
        streams.setdefault(each.message, []).append(each)
    return tuple(
        StreamFacts(
            message,
            sum(each.length for each in streams[message]),
            _sum(each.needed for each in streams[message]),
            max(each.groups for each in streams[message]),
        )
        for message in sorted(streams)
    )


def _worst(facts: Sequence[RedisFacts]) -> RedisFacts | None:
    """Of several servers: what is wrong with any; the memory is that of the fullest."""
    if not facts:
        return None
    fullest = max(facts, key=lambda each: each.used_memory / (each.max_memory or float("inf")))
    persistence = min(facts, key=lambda each: (each.append_only, bool(each.saves)))
    return replace(
        persistence,
        role=_first_other("master", [each.role for each in facts]),
        last_write_ok=all(each.last_write_ok for each in facts),
        max_memory=fullest.max_memory,
        used_memory=fullest.used_memory,
        eviction_policy=_first_other("noeviction", [each.eviction_policy for each in facts]),
    )


def _first_other(usual: str, texts: Sequence[str]) -> str:
    return next((text for text in texts if text != usual), usual)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum; None if one of them is unknown."""
    known = list(numbers)
    return None if None in known else sum(number or 0 for number in known)


def _numbers_of_version(version: str) -> list[int]:
    return [int(number) for number in version.split(".") if number.isdigit()]
