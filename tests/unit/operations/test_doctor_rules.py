"""Each rule of `eventmesh doctor`, by the facts that it is given."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.cli.doctor import as_document, lines
from eventmesh.errors import Unreachable, UsageError
from eventmesh.operations.doctor import rules
from eventmesh.operations.doctor.verdict import Severity, Verdict, exit_code
from eventmesh.operations.status import OutboxStatus, SagaStatus, SubscriptionStatus
from eventmesh.persistence.examination import DatabaseFacts
from eventmesh.persistence.pauses import Pause
from eventmesh.transports.facts import (
    FileFacts,
    RabbitmqFacts,
    RabbitmqQueue,
    RedisFacts,
    StreamFacts,
)
from eventmesh.transports.rabbitmq.facts import rabbitmq_facts
from eventmesh.transports.redis.facts import parse_info, redis_facts

OK, WARNING, FAILURE = Severity.OK, Severity.WARNING, Severity.FAILURE
AWAY, SKIPPED = Severity.AWAY, Severity.SKIPPED

SUBSCRIPTION = SubscriptionStatus(
    "bank", "bank.tell", ("bank.told",), ready=0, dead=0, consumers=1, declared=True
)
OUTBOX = OutboxStatus(due=0, delayed=0, parked=0, oldest_age=None, relays=1)
DATABASE = DatabaseFacts("postgresql", "17.2", "0007", "0007")
REDIS = RedisFacts("master", True, "everysec", "3600 1", True, 0, 1000, "noeviction")
QUEUE = RabbitmqQueue("p.queue.s", "quorum", "", {}, "running")


def test_a_server_that_does_not_answer_is_away_and_one_that_cannot_be_used_fails() -> None:
    assert rules.reachable("x", None).severity is OK
    assert rules.reachable("x", Unreachable("no")).severity is AWAY
    assert rules.reachable("x", UsageError("no")).severity is FAILURE


@pytest.mark.parametrize(
    ("kind", "told", "severity"),
    [
        ("postgresql", "15.0", OK),
        ("postgresql", "14.12", FAILURE),
        ("mariadb", "10.11.6", OK),
        ("mariadb", "10.6.2", FAILURE),
        ("redis", "7.0.15", OK),
        ("redis", "6.2.9", FAILURE),
        ("rabbitmq", "3.10.8", OK),
        ("rabbitmq", "3.9.29", FAILURE),
        ("rabbitmq", "4.1.0-rc.1", OK),
        ("sqlite", "3.40", OK),
        ("redis", None, SKIPPED),
        ("redis", "unstable", FAILURE),
    ],
)
def test_an_old_server_fails(kind: str, told: str | None, severity: Severity) -> None:
    assert rules.version("x", kind, told).severity is severity


@pytest.mark.parametrize(
    ("ahead", "severity"),
    [
        *((0.0, OK), (-5.0, OK), (5.1, WARNING), (-60.0, WARNING), (60.1, FAILURE)),
        *((-5 * 3600.0, FAILURE), (None, SKIPPED)),
    ],
)
def test_a_clock_that_is_wrong_is_found(ahead: float | None, severity: Severity) -> None:
    assert rules.clock("x", ahead).severity is severity


def test_the_verdict_about_a_clock_says_by_how_much_and_in_which_direction() -> None:
    assert "18,000.0 s behind this machine's clock" in rules.clock("x", -18_000).says
    assert "7.0 s ahead of the broker's" in rules.clock("x", 7, than="the broker's").says


@pytest.mark.parametrize(
    ("found", "severity", "fix"),
    [
        ("0007", OK, ""),
        ("0005", FAILURE, "Run `eventmesh db upgrade bank`."),
        (None, FAILURE, "Run `eventmesh db upgrade bank`."),
        ("0009", FAILURE, "Install the newer version of EventMesh here, too."),
    ],
)
def test_a_database_at_another_migration_fails(
    found: str | None, severity: Severity, fix: str
) -> None:
    verdict = rules.migration("bank", replace(DATABASE, migration=found))
    assert (verdict.severity, verdict.fix) == (severity, fix)


def test_a_right_that_is_missing_fails_and_one_that_cannot_be_tried_is_skipped() -> None:
    assert rules.permissions("x", ()).severity is OK
    verdict = rules.permissions("x", ("XADD: NOPERM", "XDEL: NOPERM"))
    assert (verdict.severity, verdict.says) == (
        FAILURE,
        "its user may not XADD: NOPERM; XDEL: NOPERM",
    )
    assert rules.permissions("x", None, "why").says == "why"


@pytest.mark.parametrize(
    ("changes", "relays", "severity"),
    [
        ({}, 0, OK),
        ({"consumers": 0}, 1, WARNING),
        ({"consumers": 0, "ready": 5}, 1, FAILURE),
        ({"consumers": None, "unknown": {"consumers": "a file"}}, 2, OK),
        ({"consumers": None, "unknown": {"consumers": "a file"}, "ready": 5}, 0, FAILURE),
        ({"consumers": None, "unknown": {"consumers": "a file"}}, None, SKIPPED),
        ({"declared": False, "consumers": 0}, 1, WARNING),
    ],
)
def test_a_subscription_without_a_consumer_is_found(
    changes: dict[str, object], relays: int | None, severity: Severity
) -> None:
    status = replace(SUBSCRIPTION, **changes)  # type: ignore[arg-type]  # fields by name
    verdict = rules.consumers(status, relays)
    assert verdict.severity is severity
    assert ("eventmesh worker bank" in verdict.fix) == (severity in (WARNING, FAILURE))


def test_a_paused_subscription_is_a_warning_that_says_who_has_paused_it_and_how_it_ends() -> None:
    pause = Pause(datetime(2026, 1, 1, tzinfo=UTC), "ada", "repairs")
    status = replace(SUBSCRIPTION, paused=pause, ready=3, consumers=0, oldest_age=9_999.0)
    verdict = rules.consumers(status, 1)
    assert verdict.severity is WARNING
    assert verdict.says == (
        "paused since 2026-01-01 00:00:00 UTC by ada: repairs; 3 message(s) wait"
    )
    assert "eventmesh resume bank.tell" in verdict.fix
    assert rules.waiting(status) is None  # more workers would not help


def test_a_message_that_waits_long_and_dead_letters_are_worth_a_look() -> None:
    assert rules.waiting(SUBSCRIPTION) is None
    for age, severity in ((600.0, OK), (601.0, WARNING)):
        verdict = rules.waiting(replace(SUBSCRIPTION, oldest_age=age))
        assert verdict is not None
        assert verdict.severity is severity
    for dead, severity in ((0, OK), (3, WARNING)):
        verdict = rules.dead_letters(replace(SUBSCRIPTION, dead=dead))
        assert verdict is not None
        assert verdict.severity is severity
    assert rules.dead_letters(replace(SUBSCRIPTION, dead=None)) is None
    holding = rules.dead_letters(replace(SUBSCRIPTION, dead=1, held=2))
    assert holding is not None
    assert "2 message(s) are held" in str(holding)


def test_an_outbox_that_is_not_relayed_fails_with_the_reason() -> None:
    assert rules.outbox_age("bank", OUTBOX, 60).severity is OK
    assert rules.outbox_age("bank", replace(OUTBOX, due=9, oldest_age=60.0), 60).severity is OK
    stuck = rules.outbox_age("bank", replace(OUTBOX, due=9, oldest_age=61.0), 60)
    assert (stuck.severity, "outbox stats bank" in stuck.fix) == (FAILURE, True)
    down = rules.outbox_age("bank", replace(OUTBOX, due=9, oldest_age=61.0, relays=0), 60)
    assert (down.severity, "no relay runs" in down.says) == (FAILURE, True)
    assert "eventmesh worker bank" in down.fix


def test_parked_messages_and_sagas_wait_for_an_operator() -> None:
    assert rules.parked_messages("bank", OUTBOX).severity is OK
    assert rules.parked_messages("bank", replace(OUTBOX, parked=1)).severity is WARNING
    saga = SagaStatus("bank", "bank.pay", running=1, undoing=0, parked=0, overdue=0)
    for parked, overdue, severity in ((0, 0, OK), (1, 0, WARNING), (0, 1, WARNING)):
        verdict = rules.sagas(replace(saga, parked=parked, overdue=overdue))
        assert verdict is not None
        assert verdict.severity is severity
    assert rules.sagas(SagaStatus("bank", "bank.pay", problem="away")) is None


def test_expired_leases_count_only_while_relays_run() -> None:
    expired = replace(DATABASE, expired_leases=3)
    assert rules.leases("bank", OUTBOX, DATABASE).severity is OK
    assert rules.leases("bank", OUTBOX, expired).severity is WARNING
    assert rules.leases("bank", replace(OUTBOX, relays=0), expired).severity is OK


@pytest.mark.parametrize(
    ("number", "most", "severity"), [(499, 1000, OK), (500, 1000, WARNING), (10**9, 0, OK)]
)
def test_unrouted_messages_are_found_before_they_are_deleted(
    number: int, most: int, severity: Severity
) -> None:
    assert rules.unrouted("a.b", number, most).severity is severity


@pytest.mark.parametrize(
    ("length", "needed", "groups", "severity"),
    [
        (100_000, 0, 1, OK),
        (100_001, 0, 1, WARNING),
        (10**7, 10**7, 1, OK),
        (10**7, None, 1, OK),
        (10**7, 0, 0, OK),
    ],
)
def test_a_stream_that_nobody_trims_is_found(
    length: int, needed: int | None, groups: int, severity: Severity
) -> None:
    assert rules.stream(StreamFacts("a.b", length, needed, groups)).severity is severity


@pytest.mark.parametrize(
    ("changes", "check", "severity"),
    [
        ({}, "persistence", OK),
        ({"append_fsync": "no"}, "persistence", WARNING),
        ({"append_fsync": None}, "persistence", OK),
        ({"append_only": False}, "persistence", WARNING),
        ({"append_only": False, "saves": None}, "persistence", WARNING),
        ({"append_only": False, "saves": ""}, "persistence", FAILURE),
        ({"last_write_ok": False}, "persistence", FAILURE),
        ({"eviction_policy": "allkeys-lru"}, "eviction", OK),
        ({"eviction_policy": "allkeys-lru", "max_memory": 10**9}, "eviction", FAILURE),
        ({"eviction_policy": "volatile-ttl", "max_memory": 10**9}, "eviction", OK),
        ({"max_memory": 1000}, "memory", WARNING),
        ({"role": "slave"}, "role", FAILURE),
    ],
)
def test_a_redis_that_may_lose_messages_is_found(
    changes: dict[str, object], check: str, severity: Severity
) -> None:
    facts = replace(REDIS, **changes)  # type: ignore[arg-type]  # fields by name
    [verdict] = [each for each in rules.redis_storage(facts) if each.check == check]
    assert verdict.severity is severity


def test_facts_are_read_from_answers_of_redis_with_anything_missing() -> None:
    assert redis_facts({}, {}) == RedisFacts("master", False, None, None, True, 0, 0, "")
    info = parse_info(
        b"# Server\r\nredis_version:7.4.1\r\nrole:master\r\naof_enabled:1\r\n"
        b"aof_last_write_status:err\r\nmaxmemory:10\r\nused_memory:9\r\nmaxmemory_policy:noeviction"
    )
    assert redis_facts(info, {"save": "", "appendfsync": "always"}) == RedisFacts(
        "master", True, "always", "", False, 10, 9, "noeviction"
    )


@pytest.mark.parametrize(
    ("changes", "checks"),
    [
        ({}, []),
        ({"kind": "classic"}, ["queue type"]),
        ({"policy": "ttl", "definition": {"message-ttl": 1000}}, ["policies"]),
        ({"policy": "ha", "definition": {"queue-leader-locator": "balanced"}}, []),
        ({"state": "down"}, ["queue state"]),
        ({"state": ""}, []),
        ({"state": "idle"}, []),
        ({"state": "minority"}, ["queue state"]),
    ],
)
def test_a_queue_that_may_lose_messages_is_found(
    changes: dict[str, object], checks: list[str]
) -> None:
    queue = replace(QUEUE, **changes)  # type: ignore[arg-type]  # fields by name
    assert [each.check for each in rules.rabbitmq_queue(queue)] == checks


def test_alarms_partitions_and_stopped_nodes_of_rabbitmq_are_found() -> None:
    nodes = [
        {"name": "a", "running": True, "mem_alarm": True, "disk_free_alarm": True},
        {"name": "b", "running": False},
        {"name": "c", "running": True, "partitions": ["a"]},
        "odd",
    ]
    facts = rabbitmq_facts(nodes, [])
    assert facts == RabbitmqFacts(
        (), ("a is short of memory", "a is short of disk space"), ("b",), ("c does not see a",)
    )
    severities = [each.severity for each in rules.rabbitmq_cluster(facts)]
    assert severities == [FAILURE, FAILURE, WARNING, FAILURE]
    assert [each.severity for each in rules.rabbitmq_cluster(rabbitmq_facts(None, []))] == [OK]


def test_a_broker_file_that_cannot_grow_is_found() -> None:
    assert [each.severity for each in rules.broker_file(FileFacts("x", True, 2 * 1024**3))] == [OK]
    bad = rules.broker_file(FileFacts("x", False, 1024))
    assert [each.severity for each in bad] == [FAILURE, WARNING]


@given(st.lists(st.sampled_from(list(Severity))))
def test_the_exit_code_is_3_if_anything_is_away_else_1_if_anything_was_found(
    severities: list[Severity],
) -> None:
    code = exit_code(Verdict("c", "s", each, "says") for each in severities)
    found = {*severities} & {WARNING, FAILURE}
    assert code == (3 if AWAY in severities else 1 if found else 0)


@given(st.text(), st.sampled_from(list(Severity)))
def test_any_text_is_printed_without_control_characters(text: str, severity: Severity) -> None:
    verdicts = [Verdict(text, text, severity, text, text)]
    for line in lines(verdicts, every=True):
        assert line.plain.isprintable()
    assert json.loads(json.dumps(as_document(verdicts)))["verdicts"][0]["says"] == text


def test_the_worst_is_printed_first_once_for_all_subjects_and_what_is_fine_when_asked_for() -> None:
    verdicts = [
        Verdict("a", "x", OK, "fine"),
        Verdict("b", "y", WARNING, "worth a look", "Look."),
        Verdict("c", "z", FAILURE, "broken", "Mend it."),
        Verdict("c", "w", FAILURE, "broken", "Mend it."),
    ]
    assert [line.plain for line in lines(verdicts)] == [
        "failure c, z, w: broken",
        "        -> Mend it.",
        "warning b, y: worth a look",
        "        -> Look.",
        "4 checks: 2 failures, 1 warning, 1 ok",
    ]
    assert "ok      a, x: fine" in [line.plain for line in lines(verdicts, every=True)]
