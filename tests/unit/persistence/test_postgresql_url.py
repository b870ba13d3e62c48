"""Which parameters of a PostgreSQL URL are supported, and how others are rejected."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from eventmesh.errors import UsageError
from eventmesh.persistence.database_url import parse_url, shown
from eventmesh.persistence.dialects.exposure import exposure
from eventmesh.persistence.dialects.postgresql import url as postgresql_url

VARIABLE = "EVENTMESH_BANK_DATABASE_URL"


def arguments(url: str) -> dict[str, Any]:
    return dict(postgresql_url.parameters(parse_url(url, "bank"), VARIABLE).arguments)


def sslmode(parameters: str) -> str | None:
    url = parse_url(f"postgresql://host/db?{parameters}", "bank")
    return postgresql_url.parameters(url, VARIABLE).sslmode


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://u:p@h:5433/db", ("u", "h", 5433, "db")),
        ("postgres://u:p@h/db", ("u", "h", None, "db")),
        ("postgresql://?host=h&port=5433&user=u&dbname=db", ("u", "h", 5433, "db")),
        ("postgresql://u@/db?host=h:5433", ("u", "h", 5433, "db")),
        ("postgresql://u@[::1]:5433/db", ("u", "::1", 5433, "db")),
    ],
)
def test_a_url_has_user_host_port_and_database(url: str, place: tuple[object, ...]) -> None:
    parsed = parse_url(url, "bank")
    assert (parsed.username, parsed.host, parsed.port, parsed.database) == place
    assert dict(parsed.query) == {}


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://u:p@one,two/db", ["one", "two"], None),
        ("postgresql://u:p@one:1,two/db", ["one", "two"], [1, 5432]),
        ("postgresql://[::1]:1,two:2/db?sslmode=require", ["::1", "two"], [1, 2]),
        ("postgresql:///db?host=one,two&port=1,2", ["one", "two"], [1, 2]),
        ("postgresql:///db?host=one,two&port=1", ["one", "two"], [1]),
        ("postgresql:///db?host=one:1&host=two:2", ["one", "two"], [1, 2]),
        ("postgresql:///db?host=/run/postgresql", ["/run/postgresql"], None),
        ("postgresql:///db?host=/run/postgresql&port=5433", ["/run/postgresql"], [5433]),
        ("postgresql://%2Frun%2Fpostgresql/db", ["/run/postgresql"], None),
    ],
)
def test_a_url_may_have_several_hosts_or_a_socket(
    url: str, hosts: list[str], ports: list[int] | None
) -> None:
    found = arguments(url)
    assert (found["host"], found.get("port")) == (hosts, ports)
    assert parse_url(url, "bank").database == "db"


@pytest.mark.parametrize("password", ["p,w", "p,w/x", "p,w?x"])
def test_a_comma_in_a_password_does_not_separate_hosts(password: str) -> None:
    parsed = parse_url(f"postgresql://u:{password}@h/db", "bank")
    assert (parsed.host, parsed.password) == ("h", password)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", None),
        ("sslmode=prefer", "prefer"),
        ("ssl=true", "require"),  # the form of libpq
        ("ssl=false", "disable"),
        ("ssl=verify-full", "verify-full"),  # the form of asyncpg
        ("ssl=require&sslmode=require", "require"),
        ("sslrootcert=system", "verify-full"),
    ],
)
def test_the_tls_mode_is_read_from_every_known_parameter(
    parameters: str, expected: str | None
) -> None:
    assert sslmode(parameters) == expected


def test_parameters_that_the_driver_reads_are_passed_to_it_as_a_url() -> None:
    found = arguments("postgresql://h/db?sslmode=verify-ca&sslrootcert=/a%20b.pem&service=main")
    assert found == {"dsn": "postgresql://?sslmode=verify-ca&sslrootcert=%2Fa+b.pem&service=main"}


def test_timeouts_and_server_settings_are_passed_to_the_driver() -> None:
    assert arguments("postgresql://h/db?connect_timeout=3") == {"timeout": 3}
    assert arguments("postgresql://h/db?connect_timeout=0") == {"timeout": None}
    found = arguments("postgresql://h/db?application_name=a&options=-c%20search_path%3Db")
    assert found == {"server_settings": {"application_name": "a", "options": "-c search_path=b"}}


@pytest.mark.parametrize(
    "harmless",
    [
        *("channel_binding=prefer", "client_encoding=UTF8", "gssencmode=disable", "keepalives=1"),
        *("load_balance_hosts=disable", "sslsni=1", "sslcompression=0", "pgbouncer=true"),
        *("pool_mode=session", "target_session_attrs=read-write", "fallback_application_name=a"),
    ],
)
def test_parameters_that_change_nothing_are_accepted(harmless: str) -> None:
    arguments(f"postgresql://h/db?{harmless}")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("ssl_mode=require", "Did you mean sslmode?"),
        ("search_path=bank", "options=-c%20search_path%3Dvalue"),
        ("sslmode=verify", "Write one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("ssl=true&sslmode=disable", "Keep one"),
        ("sslmode=require&sslmode=disable", "sslmode 2 times"),
        ("sslrootcert=system&sslmode=require", "only sslmode=verify-full protects"),
        ("sslnegotiation=direct", "needs sslmode=require"),
        ("channel_binding=require", "write sslmode=verify-full with sslrootcert"),
        ("connect_timeout=soon", "Write a whole number"),
        ("host=two", "names hosts in two places"),
        ("client_encoding=latin1", "always UTF-8"),
        ("keepalives_idle=30", "Leave it out: EventMesh makes each end notice within 20 s"),
        ("statement_cache_size=0", "detects a pooler"),
        ("requiressl=1", "Write sslmode=require"),
        ("pool_mode=statement", "works with session and transaction"),
        *(
            (f"{name}=x", f"the parameter {name}. ")
            for name in ("hostaddr", "replication", "require_auth", "sslcrldir", "requirepeer")
        ),
    ],
)
def test_an_unsupported_parameter_is_rejected_with_what_to_do(parameters: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(f"postgresql://h/db?{parameters}", "bank")
    assert str(caught.value).startswith(VARIABLE)
    assert words in str(caught.value)


def test_the_number_of_ports_must_match_the_number_of_hosts() -> None:
    with pytest.raises(UsageError, match="3 ports for 2 hosts"):
        parse_url("postgresql:///db?host=a,b&port=1,2,3", "bank")


def test_passwords_and_paths_of_keys_are_not_shown() -> None:
    url = "postgresql://u:hunter2@h/db?sslkey=/secret/key&sslpassword=hunter3&passfile=/secret/pass"
    text = shown(parse_url(url, "bank"))
    assert "hunter" not in text
    assert "secret" not in text
    assert "sslkey=" in text
    parameters = postgresql_url.parameters(parse_url(url, "bank"), VARIABLE)
    assert "hunter" not in repr(parameters)


@pytest.mark.parametrize(
    ("tls", "is_local", "accepted", "warning"),
    [
        (None, True, False, None),
        (None, False, True, None),
        (None, False, False, "not encrypted"),
        (ssl.CERT_NONE, False, False, "not verified"),
        (ssl.CERT_NONE, True, False, None),
        (ssl.CERT_REQUIRED, False, False, None),
    ],
)
def test_an_unprotected_connection_to_another_host_causes_a_warning(
    tls: ssl.VerifyMode | None, is_local: bool, accepted: bool, warning: str | None
) -> None:
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = tls
    found = exposure(tls=context, is_local=is_local, accepted=accepted)
    assert found is None if warning is None else warning in str(found)
