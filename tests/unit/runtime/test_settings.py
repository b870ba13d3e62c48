from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from eventmesh.errors import UsageError
from eventmesh.runtime.settings import Settings, load_settings
from eventmesh.transports.base import TransportOptions


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("EVENTMESH_"):
            monkeypatch.delenv(name)


def test_without_any_setting_all_is_in_files_of_this_folder() -> None:
    settings = load_settings()
    assert settings.broker_url == "sqlite:///.eventmesh/broker.db"
    assert settings.database_url("orders") == "sqlite:///.eventmesh/orders.db"
    assert settings.schemas == Path("schemas")


@pytest.mark.parametrize(
    ("text", "meant"), [("50ms", 0.05), ("2s", 2.0), ("1m", 60.0), ("7", 7.0), ("0.5", 0.5)]
)
def test_a_time_is_set_with_a_unit_or_in_seconds(
    monkeypatch: pytest.MonkeyPatch, text: str, meant: float
) -> None:
    monkeypatch.setenv("EVENTMESH_VISIBILITY_TIMEOUT", text)
    assert load_settings().visibility_timeout == meant


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EVENTMESH_PREFETCH", "many"),
        ("EVENTMESH_PREFETCH", "0"),
        ("EVENTMESH_GROUP_SIZE", "1001"),
        ("EVENTMESH_MAX_DELIVERIES", "0"),
        ("EVENTMESH_MAX_MESSAGE_BYTES", "-1"),
        ("EVENTMESH_LEASE_TIME", "0s"),
        ("EVENTMESH_LEASE_TIME", "-1"),
        ("EVENTMESH_LEASE_TIME", "inf"),
        ("EVENTMESH_DRAIN_TIMEOUT", "nan"),
        ("EVENTMESH_GROUP_TIME", "abc"),
        ("EVENTMESH_BROKER_PREFIX", "!! A b"),
        ("EVENTMESH_BROKER_PREFIX", ""),
        ("EVENTMESH_LOG_FORMAT", "xml"),
        ("EVENTMESH_LOG_LEVEL", "loud"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=f"cannot be used: {name}: ") as caught:
        load_settings()
    assert caught.value.exit_code == 2


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMESH_PREFETCH", "many")
    monkeypatch.setenv("EVENTMESH_LOG_LEVEL", "loud")
    with pytest.raises(UsageError, match=r"EVENTMESH_PREFETCH: .*; EVENTMESH_LOG_LEVEL: "):
        load_settings()


def test_a_setting_that_is_no_json_where_json_is_meant_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTMESH_DATABASE_URLS", "{bad")
    with pytest.raises(UsageError, match=r"cannot be read: .*database_urls"):
        load_settings()


def test_an_unknown_variable_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMESH_SOMETHING_ELSE", "1")
    load_settings()


def test_each_service_has_a_database_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMESH_ORDERS_DATABASE_URL", "postgresql://orders")
    settings = load_settings()
    assert settings.database_url("orders") == "postgresql://orders"
    assert settings.database_url("payments") == "sqlite:///.eventmesh/payments.db"


def test_a_database_given_in_code_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTMESH_ORDERS_DATABASE_URL", "postgresql://environment")
    settings = Settings(database_urls={"orders": "sqlite:///given.db"})
    assert settings.database_url("orders") == "sqlite:///given.db"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().prefetch = 1


def test_a_transport_is_told_only_what_is_its_own() -> None:
    settings = Settings(visibility_timeout=5, broker_prefix="shop")
    assert settings.transport_options == TransportOptions(visibility_timeout=5.0, prefix="shop")
