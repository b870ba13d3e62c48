"""Parsing the broker URL of a Redis server, Sentinel or Cluster."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import SSLConnection

from eventmesh.errors import UsageError
from eventmesh.transports.base import Subscription
from eventmesh.transports.redis.address import parse_broker_url
from eventmesh.transports.redis.keys import Layout


def test_a_url_has_host_user_password_database_and_options() -> None:
    url = parse_broker_url("redis://me:p%40ss@host:7000/3?socket_keepalive=true")
    assert (url.kind, url.addresses) == ("redis", (("host", 7000),))
    assert url.options == {
        "username": "me",
        "password": "p@ss",
        "db": 3,
        "socket_keepalive": True,
    }


@pytest.mark.parametrize(
    ("text", "kind", "addresses"),
    [
        ("redis://", "redis", (("localhost", 6379),)),
        ("redis://[::1]:7000", "redis", (("::1", 7000),)),
        ("redis+sentinel://a:1,b/shop", "sentinel", (("a", 1), ("b", 26379))),
        ("rediss+sentinel://u:p@[::1]:1,b:2/shop/4", "sentinel", (("::1", 1), ("b", 2))),
        ("redis+cluster://:secret@a,b:7001/", "cluster", (("a", 6379), ("b", 7001))),
        ("rediss+cluster://a/0", "cluster", (("a", 6379),)),
        ("redis+cluster://a,[::1]:7001", "cluster", (("a", 6379), ("::1", 7001))),
    ],
)
def test_a_url_may_name_a_server_sentinels_or_cluster_nodes(
    text: str, kind: str, addresses: tuple[tuple[str, int], ...]
) -> None:
    url = parse_broker_url(text)
    assert (url.kind, url.addresses) == (kind, addresses)
    assert (url.options.get("connection_class") is SSLConnection) == text.startswith("rediss")


def test_a_sentinel_url_names_a_master_and_may_have_a_password_for_the_sentinels() -> None:
    url = parse_broker_url("redis+sentinel://u:p@a/my%20shop/4?sentinel_password=q&wait_replicas=2")
    assert (url.master, url.options["db"], url.wait_replicas) == ("my shop", 4, 2)
    assert (url.options["password"], url.sentinel_options) == ("p", {"password": "q"})


@pytest.mark.parametrize("scheme", ["redis://a", "redis+sentinel://a/shop", "rediss+cluster://a"])
def test_a_url_may_say_over_how_many_slots_the_prefix_is_spread(scheme: str) -> None:
    assert parse_broker_url(f"{scheme}?slots=6").slots == 6
    assert parse_broker_url(scheme).slots is None
    assert "slots" not in parse_broker_url(f"{scheme}?slots=6").options


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://a,b/0", "several hosts need redis+sentinel:// or redis+cluster://"),
        ("redis://host:port/0", "Port could not be cast"),
        ("redis://host?health_check_interval=often", "health_check_interval"),
        ("redis://host?wait_replicas=-1", "wait_replicas must be 0 or more"),
        ("redis://host?wait_replicas=many", "invalid literal"),
        ("redis://host?slots=0", "slots must be a number from 1 to 64"),
        ("redis+cluster://host?slots=65", "slots must be a number from 1 to 64"),
        ("redis+cluster://host?slots=many", "invalid literal"),
        ("redis+sentinel://host", "it does not name a master"),
        ("redis+sentinel://host/shop/first", "'first' is not the number of a database"),
        ("redis+cluster://host/1", "a Redis Cluster has only the database 0"),
        (
            "rediss://host?ssl_ca_certs=/no/ca.pem",
            "ssl_ca_certs names the file /no/ca.pem, which does not exist",
        ),
    ],
)
def test_an_invalid_url_is_rejected_with_the_reason_and_the_valid_form(
    url: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_broker_url(url.replace("://", "://user:s3cret@"))
    assert words in str(caught.value)
    assert "Write it as redis" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_on_a_cluster_the_prefix_is_the_hash_tag_of_every_key() -> None:
    subscription = Subscription("orders.note", ("payments.paid",))
    keys = Layout("mesh", one_slot=True).of(subscription)
    assert {key.partition(":")[0] for key in (*keys.streams, keys.delayed, keys.dead)} == {"{mesh}"}
    assert Layout("mesh", one_slot=False).of(subscription).dead == "mesh:dead:orders.note"
