"""No part of a password is shown, however the URL is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventmesh.errors import UsageError
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_url import parse_url
from eventmesh.redact import redact, redact_ends, redact_error, redact_text
from eventmesh.review.fleet_facts import database_name
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.factory import make_transport

PLACES = [
    "amqp://u:{}@h:1/",
    "amqps://u:{}@[::1]:1,b:2/v?heartbeat=5",
    "redis://:{}@h:1/0",
    "redis+sentinel://u:{}@a:1,b:2/shop/0",
    "postgresql://u:{}@h:1/db?x=y",
    "mariadb+asyncmy://u:{}@h/db",
    "kafka9://u:{}@h",
    "u:{}@h",
    "redis://h:1/0?password={}",
    "postgresql://u@h/db?sslpassword={}",
    "rediss://h?ssl_password={}&db=3",
    "host=h user=u password={}",
]
"""URLs, and texts that look like one, with a place for a password."""

ORDINARY = "jkqvxz0123456789"
"""No word of an error message contains four of these in a row."""

RESERVED = "@:/?#%[] &=,;'\"\\|€\t"
TRICKY = [
    "@",
    ":",
    "/",
    "?",
    "#",
    "kq@x0",
    "w0zz9",
    "&db=1",
    "?password=xq9z",
    "://",
    "%3a",
    "%zz",
]

passwords = st.text(st.sampled_from(ORDINARY + RESERVED), max_size=30) | st.lists(
    st.sampled_from(TRICKY), max_size=8
).map("".join)


def leaked(shown: str, password: str, template: str = "") -> list[str]:
    """Four-character parts of the password that are shown, and are not part of the template."""
    pieces = {password[at : at + 4] for at in range(len(password) - 3)}
    return [
        piece
        for piece in pieces
        if piece in shown and piece not in template and any(char in ORDINARY for char in piece)
    ]


@settings(max_examples=200)
@example("host=h user=u password={}", "000:")
@given(st.sampled_from(PLACES), passwords)
def test_no_part_of_a_password_is_shown(place: str, password: str) -> None:
    shown = redact(place.format(password))
    assert not leaked(shown, password, place.format("***")), shown


@settings(max_examples=200)
@given(st.sampled_from(PLACES), passwords)
def test_no_error_about_a_url_shows_a_part_of_its_password(place: str, password: str) -> None:
    url = place.format(password)
    for parse in (
        lambda: make_transport(url, ManualClock(), TransportOptions()),
        lambda: parse_url(url, "bank"),
    ):
        message = error_of(parse)
        assert not leaked(message, password, place.format("***")), message


def error_of(parse: Callable[[], object]) -> str:
    """The text of the UsageError that it raises; empty if it raises none."""
    try:
        parse()
    except UsageError as error:
        return str(error)
    return ""


@settings(max_examples=200)
@given(st.sampled_from(PLACES), passwords)
def test_settings_are_shown_without_passwords(place: str, password: str) -> None:
    loaded, expected = (
        Settings(broker_url=url, database_urls={"bank": url})
        for url in (place.format(password), place.format("***"))
    )
    # Other settings contain digits, such as 1000000, which a password may also contain.
    for shown in (repr(loaded), str(loaded)):
        assert not leaked(shown, password, repr(expected)), shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://u:p@ss:w0rd/x?y#z@h:1/", "amqp://u:***@h:1/"),
        ("u:s3cr3t@host", "u:***@host"),
        ("amqp://u:s3cr3t", "amqp://u:***"),
        ("amqp://u:s3cr3t/v", "amqp://u:***"),
        ("redis://h?password=s3cr3t&db=1", "redis://h?password=***"),
        ("u://s3cr3t@host", "u:***@host"),
        ("redis+sentinel://a:1,[::1]:2,c/shop", "redis+sentinel://a:1,[::1]:2,c/shop"),
        ("sqlite:///.eventmesh/broker.db", "sqlite:///.eventmesh/broker.db"),
        ("sqlite:/broker.db", "sqlite:/broker.db"),
        ("localhost:5672", "localhost:5672"),
        ("localhost:5672/shop", "localhost:5672/shop"),
        ("u:s3cr3t", "u:***"),
        ("u:123456", "u:***"),
        ("amqp://user@host:5672/v", "amqp://user@host:5672/v"),
    ],
)
def test_only_the_password_of_a_url_is_replaced(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_an_error_keeps_everything_but_the_password() -> None:
    url = "amqp://u:p@ss:w0rd/x@h/"
    assert redact_error("Port could not be cast as 'w0rd/x'", url) == (
        "Port could not be cast as '***'"
    )
    url = "redis://u:pa/ss@h:6379"
    assert redact_error("Port could not be cast to integer value as 'pa'", url) == (
        "Port could not be cast to integer value as '***'"
    )
    url = "postgresql://bank:bank@h/bank"
    assert redact_error('no database "bank" at bank:bank@h', url) == (
        'no database "bank" at bank:***@h'
    )


def test_passwords_of_urls_in_a_text_are_replaced() -> None:
    text = "lost amqp://u:s3cr3t@h/ and 'redis://:s3cr3t@h:1/0', at 12:30 for me@home"
    assert (
        redact_text(text) == "lost amqp://u:***@h/ and 'redis://:***@h:1/0', at 12:30 for me@home"
    )


@pytest.mark.parametrize("before", ["1", "-", "1" * 60, "+x" * 60], ids=str)
def test_a_url_in_a_text_is_found_whatever_precedes_its_scheme(before: str) -> None:
    assert "s3cr3t" not in redact_text(f"lost {before}amqp://u:s3cr3t@h/ again")


def test_of_a_long_text_only_the_ends_are_read_without_the_parts_of_urls_that_are_cut() -> None:
    url = "amqp://u:" + "12345678" * 100 + "@h/"
    for kept in range(20, 1_000, 7):
        shown = redact_ends(f"lost '{url}' and '{url}' again", kept)
        assert "1234" not in shown
        assert shown.startswith("lost '")
        assert shown.endswith("' again")


@pytest.mark.parametrize("name", ["token", "my-token.x", "tokentoken", "x.api_key ", "a b secret"])
def test_a_secret_parameter_is_found_in_any_name_that_contains_its_word(name: str) -> None:
    assert redact(f"amqp://h?{name}=s3cr3t") == f"amqp://h?{name}=***"


LARGE = 100_000
LONG = {
    "letters": "a" * LARGE,
    "a URL with a long parameter": "https://api.example/callback?data=" + "a" * LARGE,
    "a URL with a long path": "https://h:80/" + "a" * LARGE,
    "hex digits after a URL": "amqp://h/ " + "0123456789abcdef" * (LARGE // 16),
    "a long word before a URL": "a" * LARGE + " amqp://h/",
    "names of secrets": "amqp://h?" + "token" * (LARGE // 5),
    "spaces after the name of a secret": "amqp://h?token" + " " * LARGE,
    "many names": "amqp://h?" + "token " * (LARGE // 6),
    "colons": "amqp://" + ":" * LARGE,
    "ports": "amqp://h" + ":1" * (LARGE // 2),
    "digits": "amqp://h:" + "1" * LARGE + "x",
    "open brackets": "amqp://h:1" + "[" * LARGE,
    "brackets": "amqp://h:1" + "[a]" * (LARGE // 3),
    "escapes": "amqp://h" + "%3" * (LARGE // 2),
    "many URLs": "amqp://u:s3cr3t@h/ " * (LARGE // 20),
    "many schemes": "amqp://" * (LARGE // 7),
    "keys": "amqp://h" + "?sslkey=" * (LARGE // 8),
    "spaces": " " * LARGE,
    "quotes": "amqp://h " + "'" * LARGE,
}
"""Texts of which a careless pattern reads the rest again at each character, for minutes."""


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_the_time_that_redacting_takes_grows_with_the_length_of_the_text_only(text: str) -> None:
    began_at = time.process_time()
    redact(text)
    redact_text(text)
    redact_error(text, text[:1000])
    redact_error(text, "amqp://u:p@ss:w0rd/x@h/")
    assert time.process_time() - began_at < 4  # usually 0.1 s


def test_an_unescaped_password_of_a_database_is_not_shown() -> None:
    url = "postgresql://u:p@localhost/s3cr3t@h/db"
    database = Database(url, service="bank")
    assert "s3cr3t" not in f"{database!r} {database.shown_url}"
    assert "s3cr3t" not in database_name(url, "bank", Path())
