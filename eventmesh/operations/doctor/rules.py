"""The rules about one thing each: pure functions from measured numbers to a verdict.

A verdict says what was measured in words, and its fix what a person does next.
"""

from __future__ import annotations

import re

from eventmesh.errors import EventMeshError, Unreachable
from eventmesh.operations.doctor.verdict import Severity, Verdict, failure, fine, skipped, warning
from eventmesh.operations.status import OutboxStatus, SagaStatus, SubscriptionStatus
from eventmesh.persistence.database_time import MOST_DIFFERENCE
from eventmesh.persistence.examination import DatabaseFacts
from eventmesh.transports.facts import (
    FileFacts,
    RabbitmqFacts,
    RabbitmqQueue,
    RedisFacts,
    StreamFacts,
)

OLDEST_VERSIONS = {
    "postgresql": (15,),
    "mariadb": (10, 11),
    "redis": (7, 0),
    "rabbitmq": (3, 10),
}
"""The oldest servers on which EventMesh is tested."""

NOTABLE_DIFFERENCE = 5.0
"""Seconds by which clocks that are synchronised never differ."""

MOST_WAIT = 600.0
"""Seconds after which a message that waits for a consumer is worth a warning."""

MOST_UNNEEDED = 100_000
"""Entries that a stream may keep beyond what its groups need: trimming takes whole nodes, and runs
beside the consuming."""

FULL = 0.9
"""The share of a limit from which on it is nearly reached."""

LEAST_FREE = 1024**3
"""Bytes that should be free on the disk of a broker file."""

_POLICY_LIMITS = (
    *("max-length", "max-length-bytes", "message-ttl", "expires", "delivery-limit", "overflow"),
    *("dead-letter-exchange", "dead-letter-routing-key", "dead-letter-strategy"),
)
"""What a policy can set that makes RabbitMQ drop, move or reject messages of ours."""


_UNAVAILABLE = ("crashed", "down", "minority", "stopped")
"""States of a queue in which it takes no message; "running", "idle" and "flow" are fine."""


def reachable(subject: str, error: EventMeshError | None) -> Verdict:
    """Whether a server answers and can be used."""
    if error is None:
        return fine("reachable", subject, "it answers")
    severity = Severity.AWAY if isinstance(error, Unreachable) else Severity.FAILURE
    # Its text is a whole paragraph that ends with what to do.
    return Verdict("reachable", subject, severity, str(error), "")


def version(subject: str, kind: str, told: str | None) -> Verdict:
    """Whether the server is one on which EventMesh is tested."""
    oldest = OLDEST_VERSIONS.get(kind)
    if told is None:
        return skipped("version", subject, "it does not tell its version")
    if oldest is None or parse_version(told) >= oldest:
        return fine("version", subject, told)
    needed = ".".join(map(str, oldest))
    return failure(
        "version", subject, f"its version is {told}", f"Upgrade it to {needed} or later."
    )


def parse_version(told: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version, such as (7, 0, 15)."""
    found = re.match(r"\d+(?:\.\d+)*", told)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def clock(
    subject: str, ahead: float | None, why_unknown: str = "", *, than: str = "this machine's clock"
) -> Verdict:
    """Whether a server's clock agrees with another, `than` which it is so many seconds ahead."""
    if ahead is None:
        why = why_unknown or "it does not tell the time"
        return skipped("clock", subject, why)
    side = "ahead of" if ahead > 0 else "behind"
    says = f"its clock is {abs(ahead):,.1f} s {side} {than}"
    if abs(ahead) <= NOTABLE_DIFFERENCE:
        return fine("clock", subject, says)
    severity = Severity.FAILURE if abs(ahead) > MOST_DIFFERENCE else Severity.WARNING
    fix = "Set the clock that is wrong, for example by NTP."
    if severity is Severity.FAILURE:
        fix += " Until then nothing is purged, and workers whose clock is wrong are not ready."
    return Verdict("clock", subject, severity, says, fix)


def migration(service: str, facts: DatabaseFacts) -> Verdict:
    """Whether the database has the tables that this version needs."""
    subject, found = f"database of {service}", facts.migration
    if found == facts.head:
        return fine("migration", subject, f"at {facts.head}")
    if found is not None and found > facts.head:
        return failure(
            "migration",
            subject,
            f"at {found}, newer than {facts.head}",
            "Install the newer version of EventMesh here, too.",
        )
    state = "no EventMesh tables" if found is None else f"at {found}, older than {facts.head}"
    return failure("migration", subject, state, f"Run `eventmesh db upgrade {service}`.")


def permissions(subject: str, forbidden: tuple[str, ...] | None, why_unknown: str = "") -> Verdict:
    """Whether our user may do what EventMesh does."""
    if forbidden is None:
        return skipped("permissions", subject, why_unknown or "not told")
    if not forbidden:
        return fine("permissions", subject, "its user may do everything needed")
    return failure(
        "permissions",
        subject,
        f"its user may not {'; '.join(forbidden)}",
        "Grant it, or use another user.",
    )


def consumers(status: SubscriptionStatus, relays: int | None) -> Verdict:
    """Whether anybody consumes a subscription. A broker that cannot count consumers is replaced by
    the relays of the service's database, of which each worker process runs one."""
    subject = status.name
    if status.declared is False:
        return warning(
            "consumers",
            subject,
            "the broker does not have it",
            f"Start a worker: `eventmesh worker {status.service}`. Until then its messages wait as "
            f"unrouted.",
        )
    if status.paused is not None:
        waits = f"; {status.ready:,} message(s) wait" if status.ready else ""
        fix = f"Resume it by `eventmesh resume {subject}` once the reason is gone."
        return warning("consumers", subject, f"{status.paused}{waits}", fix)
    number, what = status.consumers, "consumer(s)"
    if number is None and "consumers" in status.unknown and status.problem is None:
        number, what = relays, "worker(s) of the service"
    if number is None:
        why = status.unknown.get("consumers", "unknown")
        return skipped("consumers", subject, why)
    if number:
        return fine("consumers", subject, f"{number} {what}")
    waits = f"and {status.ready:,} message(s) wait" if status.ready else "and nothing waits"
    return Verdict(
        "consumers",
        subject,
        Severity.FAILURE if status.ready else Severity.WARNING,
        f"no consumer, {waits}",
        f"Start a worker: `eventmesh worker {status.service}`; its log says why it stops.",
    )


def waiting(status: SubscriptionStatus) -> Verdict | None:
    """Whether the oldest message waits too long; None where nothing waits, no age is known, or the
    subscription is paused, of which `consumers` tells."""
    if status.oldest_age is None or status.paused is not None:
        return None
    says = f"its oldest message has waited for {status.oldest_age:,.0f} s"
    if status.oldest_age <= MOST_WAIT:
        return fine("waiting", status.name, says)
    return warning(
        "waiting",
        status.name,
        f"{says}; {status.ready or 0:,} are ready",
        "Start more workers, or raise the handler's concurrency; if none is handled at all, see "
        "the log of its workers.",
    )


def dead_letters(status: SubscriptionStatus) -> Verdict | None:
    """Whether there are dead letters; None if that is unknown."""
    if status.dead is None:
        return None
    if not status.dead:
        return fine("dead letters", status.name, "none")
    behind = f"; {status.held:,} message(s) are held behind one of their key" if status.held else ""
    return warning(
        "dead letters",
        status.name,
        f"{status.dead:,} dead letter(s){behind}",
        f"See why by `eventmesh dlq list {status.service}`; then replay or discard them.",
    )


def outbox_age(service: str, outbox: OutboxStatus, most: float) -> Verdict:
    """Whether the relays keep up."""
    subject = f"outbox of {service}"
    age = outbox.oldest_age
    if age is None or age <= most:
        says = "nothing is due" if age is None else f"the oldest is due for {age:,.1f} s"
        return fine("outbox", subject, says)
    number = f"more than {outbox.due:,}" if outbox.is_partial else f"{outbox.due:,}"
    says = f"{number} message(s) are due, the oldest for {age:,.0f} s"
    if not outbox.relays:
        says, fix = f"{says}, and no relay runs", f"Start a worker: `eventmesh worker {service}`."
    else:
        fix = (
            f"See what the broker says about them in the log of the workers, and "
            f"`eventmesh outbox stats {service}`."
        )
    return failure("outbox", subject, says, fix)


def parked_messages(service: str, outbox: OutboxStatus) -> Verdict:
    """Whether messages wait for an operator."""
    subject = f"outbox of {service}"
    if not outbox.parked:
        return fine("parked messages", subject, "none")
    return warning(
        "parked messages",
        subject,
        f"{outbox.parked:,} message(s) are parked, and block later ones of their keys",
        f"See why by `eventmesh outbox list {service} --parked`; then retry or skip them.",
    )


def leases(service: str, outbox: OutboxStatus, facts: DatabaseFacts) -> Verdict:
    """Whether every part of the outbox has a relay."""
    subject = f"outbox of {service}"
    if not facts.expired_leases or not outbox.relays:
        return fine("leases", subject, f"{outbox.relays} relay(s)")
    return warning(
        "leases",
        subject,
        f"{facts.expired_leases} of its 16 parts have an expired lease that none of the "
        f"{outbox.relays} relay(s) takes over",
        "See the log of the workers; a worker whose clock or event loop stands still is restarted.",
    )


def sagas(status: SagaStatus) -> Verdict | None:
    """Whether sagas wait for an operator, or for a time-out that does not come; None if unknown."""
    if status.parked is None or status.overdue is None:
        return None
    if not status.parked and not status.overdue:
        return fine("sagas", status.name, "none is parked or overdue")
    if status.parked:
        return warning(
            "sagas",
            status.name,
            f"{status.parked:,} saga(s) are parked",
            f"See why by `eventmesh saga list {status.service} --status parked`.",
        )
    return warning(
        "sagas",
        status.name,
        f"{status.overdue:,} saga(s) are overdue",
        f"Their time-outs are in the outbox or on the broker: see whether the workers of "
        f"{status.service} run, and `eventmesh outbox stats {status.service}`.",
    )


def undeclared(name: str, number: int | None, fix: str) -> Verdict:
    """A subscription that the broker has, and no service declares."""
    holds = "an unknown number of messages" if number is None else f"{number:,} message(s)"
    return warning(
        "undeclared subscriptions",
        name,
        f"no service of this project declares it, and the broker keeps {holds} for it",
        fix,
    )


def surplus(name: str, message: str, number: int | None, fix: str) -> Verdict:
    """A message that the broker gives to a subscription, and its handler takes no more."""
    holds = "more of it" if number is None else f"{number:,} message(s) of it, and more"
    return warning(
        "undeclared subscriptions",
        name,
        f"its handler takes {message} no more, and the broker keeps {holds} for it",
        f"If all its workers run this code, {fix}.",
    )


def unrouted(message: str, number: int, most: int) -> Verdict:
    """Messages without a subscription. `most` is how many are kept, 0 for all."""
    subject = message or "foreign messages"
    says = f"{number:,} message(s) have no subscription"
    if not most or number < most / 2:
        return fine("unrouted messages", subject, says)
    return warning(
        "unrouted messages",
        subject,
        f"{says}; at {most:,} they are deleted",
        "Start the service that subscribes to them, or purge them: `eventmesh unrouted list`.",
    )


def stream(facts: StreamFacts) -> Verdict:
    """Whether a Redis stream holds more than its groups need."""
    subject = f"stream {facts.message}"
    if facts.needed is None or not facts.groups:
        return fine("streams", subject, f"{facts.length:,} entries")
    unneeded = facts.length - facts.needed
    if unneeded <= MOST_UNNEEDED:
        return fine("streams", subject, f"{facts.length:,} entries")
    return warning(
        "streams",
        subject,
        f"{unneeded:,} of its {facts.length:,} entries were acknowledged by every group",
        "Workers trim it while they consume: see that one runs, and that its user may use XTRIM.",
    )


def redis_storage(facts: RedisFacts) -> list[Verdict]:
    """Whether Redis keeps what it confirms."""
    found = [_persistence(facts), _eviction(facts)]
    if facts.role != "master":
        found.append(
            failure(
                "role",
                "broker",
                f"this Redis is a {facts.role}",
                "Name the master in EVENTMESH_BROKER_URL, or find it by redis+sentinel://.",
            )
        )
    if facts.max_memory and facts.used_memory >= FULL * facts.max_memory:
        share = 100 * facts.used_memory / facts.max_memory
        found.append(
            warning(
                "memory",
                "broker",
                f"{share:.0f}% of its maxmemory is used",
                "Raise maxmemory, or let workers catch up: a full Redis rejects every message.",
            )
        )
    return found


def _persistence(facts: RedisFacts) -> Verdict:
    if not facts.last_write_ok:
        return failure(
            "persistence",
            "broker",
            "its last write to disk failed",
            "See the log of Redis: its disk may be full.",
        )
    if facts.append_only:
        if facts.append_fsync == "no":
            return warning(
                "persistence",
                "broker",
                "it appends to a file that it never syncs, so a power cut loses what the system "
                "has not written, about 30 s",
                "Set `appendfsync everysec`, or `always`.",
            )
        synced = f", synced {facts.append_fsync}" if facts.append_fsync else ""
        return fine("persistence", "broker", f"append-only file{synced}")
    if facts.saves == "":
        return failure(
            "persistence",
            "broker",
            "it writes nothing to disk: a restart loses all messages",
            "Set `appendonly yes`.",
        )
    return warning(
        "persistence",
        "broker",
        "it saves snapshots only: a crash loses all messages since the last one",
        "Set `appendonly yes`.",
    )


def _eviction(facts: RedisFacts) -> Verdict:
    policy = facts.eviction_policy
    if not policy.startswith("allkeys") or not facts.max_memory:
        # None of our keys has a time to live, so that volatile policies never evict one.
        return fine("eviction", "broker", f"maxmemory-policy {policy or 'unknown'}")
    return failure(
        "eviction",
        "broker",
        f"maxmemory-policy is {policy}: when its memory is full, it deletes streams with messages",
        "Set `maxmemory-policy noeviction`.",
    )


def rabbitmq_cluster(facts: RabbitmqFacts) -> list[Verdict]:
    """Whether the nodes are well."""
    found = [
        *(
            failure(
                "alarms",
                "broker",
                alarm,
                "Publishing is blocked until that ends: free some, or raise the limit.",
            )
            for alarm in facts.alarms
        ),
        *(
            warning(
                "nodes",
                "broker",
                f"the node {node} does not run",
                "Start it, or remove it by `rabbitmqctl forget_cluster_node`.",
            )
            for node in facts.stopped_nodes
        ),
        *(
            failure(
                "nodes",
                "broker",
                partition,
                "Mend the network, then restart the node that was cut off.",
            )
            for partition in facts.partitions
        ),
    ]
    return found or [fine("alarms", "broker", "none")]


def rabbitmq_queue(queue: RabbitmqQueue) -> list[Verdict]:
    """What is wrong with a queue; empty if nothing is."""
    found, subject = [], f"queue {queue.name}"
    if queue.kind != "quorum":
        found.append(
            failure(
                "queue type",
                subject,
                f"its type is {queue.kind}",
                "A classic queue loses messages with its node. Stop the workers, let them drain, "
                "delete it, and start them: they declare a quorum queue.",
            )
        )
    limits = [limit for limit in _POLICY_LIMITS if limit in queue.definition]
    if limits:
        found.append(
            failure(
                "policies",
                subject,
                f"the policy {queue.policy or '?'} sets {', '.join(limits)}, by which RabbitMQ "
                f"drops or moves messages",
                "Change the policy's pattern so that it does not match queues of EventMesh.",
            )
        )
    if queue.state in _UNAVAILABLE:
        found.append(
            failure(
                "queue state",
                subject,
                f"it is {queue.state}",
                "Most of its nodes are down: start them.",
            )
        )
    return found


def broker_file(facts: FileFacts) -> list[Verdict]:
    """Whether the file of the embedded broker can grow."""
    found = []
    if not facts.is_writable:
        found.append(
            failure(
                "permissions",
                "broker",
                f"{facts.path} is read-only",
                "Let the user of this process write it, and its folder.",
            )
        )
    free = f"{facts.free_bytes / 1024**3:,.1f} GiB are free on its disk"
    if facts.free_bytes < LEAST_FREE:
        fix = "Free some: a full disk rejects every message."
        return [*found, warning("disk", "broker", free, fix)]
    return [*found, fine("disk", "broker", free)]
