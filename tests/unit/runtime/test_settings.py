from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from eventmesh import Service
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.settings import Settings, load_settings, unknown_variables
from eventmesh.transports.base import TransportOptions


@pytest.fixture(autouse=True)
def _without_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("EVENTMESH_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_files_in_the_current_folder() -> None:
    settings = load_settings()
    assert settings.broker_url == "sqlite:///.eventmesh/broker.db"
    assert settings.database_url("orders") == "sqlite:///.eventmesh/orders.db"
    assert settings.schemas == Path("schemas")


@pytest.mark.parametrize(
    ("text", "expected"), [("50ms", 0.05), ("2s", 2.0), ("1m", 60.0), ("7", 7.0), ("0.5", 0.5)]
)
def test_a_duration_has_a_unit_or_is_in_seconds(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: float
) -> None:
    monkeypatch.setenv("EVENTMESH_VISIBILITY_TIMEOUT", text)
    assert load_settings().visibility_timeout == expected


def test_the_log_level_may_be_written_as_python_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMESH_LOG_LEVEL", "INFO")
    assert load_settings().log_level == "info"


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
def test_the_error_names_an_invalid_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=f"cannot be used: {name}: ") as caught:
        load_settings()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("EVENTMESH_PREFETCH", "many", "'many' is not a whole number"),
        ("EVENTMESH_PREFETCH", "0", "0 is too small: the least is 1"),
        ("EVENTMESH_PREFETCH", "20000", "20000 is too large: the most is 10,000"),
        ("EVENTMESH_JOURNAL", "perhaps", "'perhaps' is neither true nor false"),
        (
            "EVENTMESH_LOG_LEVEL",
            "loud",
            "'loud' is not one of 'debug', 'info'",
        ),
        ("EVENTMESH_GROUP_TIME", "soon", "'soon' is not a valid duration"),
        ("EVENTMESH_BROKER_PREFIX", "My App", "a letter first"),
    ],
)
def test_the_error_says_what_is_wrong_with_a_value(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=said):
        load_settings()


def test_the_error_names_all_invalid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMESH_PREFETCH", "many")
    monkeypatch.setenv("EVENTMESH_LOG_LEVEL", "loud")
    with pytest.raises(UsageError, match=r"EVENTMESH_PREFETCH: .*; EVENTMESH_LOG_LEVEL: "):
        load_settings()


def test_the_error_names_a_setting_that_is_not_valid_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTMESH_DATABASE_URLS", "{bad")
    with pytest.raises(UsageError, match=r"cannot be read: .*database_urls"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EVENTMESH_BROKER_URI", "EVENTMESH_BROKER_URL"),
        ("EVENTMESH_PREFECTH", "EVENTMESH_PREFETCH"),
        ("EVENTMESH_AA_DATABASE_URL", "EVENTMESH_BANK_DATABASE_URL"),
        ("EVENTMESH_TIL_DATABASE_URL", "EVENTMESH_TILL_DATABASE_URL"),
        ("EVENTMESH_QQQQQQQQQQQQQQQQQ", None),
    ],
)
def test_an_unknown_variable_is_reported_with_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str | None
) -> None:
    monkeypatch.setenv(name, "1")
    known = ("EVENTMESH_BANK_DATABASE_URL", "EVENTMESH_LOG_LEVEL", "EVENTMESH_TEST_REDIS_URL")
    for other in known:
        monkeypatch.setenv(other, "debug")
    [unknown] = unknown_variables(load_settings(), ["bank", "till"])
    assert (unknown.name, unknown.nearest) == (name, nearest)
    assert name in str(unknown)


def test_the_env_file_is_read_and_the_environment_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "# of this machine\nexport EVENTMESH_PREFETCH=7\nEVENTMESH_BROKER_URL='redis://file'\n"
        "EVENTMESH_BANK_DATABASE_URL=sqlite:///file.db\nEVENTMESH_TILL_DATABASE_URL=sqlite:///t.db\n"
        'EVENTMESH_DATABASE_URLS={"mail": "sqlite:///mail.db"}\n'
        "EVENTMESH_LEASE_TIME=2s\nEVENTMESH_PREFECTH=1\nPREFETCH=2\nPATH_OF_OTHERS=x\n"
    )
    monkeypatch.setenv("EVENTMESH_BROKER_URL", "redis://environment")
    monkeypatch.setenv("EVENTMESH_TILL_DATABASE_URL", "sqlite:///environment.db")
    settings = load_settings()
    assert (settings.prefetch, settings.lease_time) == (7, 2.0)
    assert settings.broker_url == "redis://environment"
    assert settings.database_url("bank") == "sqlite:///file.db"
    assert settings.database_url("till") == "sqlite:///environment.db"
    assert settings.database_url("mail") == "sqlite:///mail.db"
    assert settings.model_copy().database_url("bank") == "sqlite:///file.db"
    assert "PATH_OF_OTHERS" not in os.environ
    assert "EVENTMESH_PREFETCH" not in os.environ
    [unknown] = unknown_variables(settings, ["bank", "till"])
    assert unknown.name == "EVENTMESH_PREFECTH"


def test_settings_created_in_code_do_not_read_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EVENTMESH_PREFETCH=7\n")
    assert Settings().prefetch == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", r"\.env cannot be read"),
        (b"EVENTMESH_PREFETCH=many", "EVENTMESH_PREFETCH: "),
        (b"EVENTMESH_DATABASE_URLS={bad", "EVENTMESH_DATABASE_URLS"),
    ],
)
def test_an_invalid_env_file_is_reported(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        load_settings()


def test_each_service_has_its_own_database_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMESH_ORDERS_DATABASE_URL", "postgresql://orders")
    settings = load_settings()
    assert settings.database_url("orders") == "postgresql://orders"
    assert settings.database_url("payments") == "sqlite:///.eventmesh/payments.db"


def test_a_database_given_in_code_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTMESH_ORDERS_DATABASE_URL", "postgresql://environment")
    settings = Settings(database_urls={"orders": "sqlite:///given.db"})
    assert settings.database_url("orders") == "sqlite:///given.db"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().prefetch = 1


def test_the_transport_options_are_taken_from_the_settings() -> None:
    settings = Settings(visibility_timeout=5, broker_prefix="shop")
    assert settings.transport_options == TransportOptions(visibility_timeout=5.0, prefix="shop")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("EVENTMESH_BROKER_URI", "EVENTMESH_BROKER_URL"),
        ("EVENTMESH_BANK_DB_URL", "EVENTMESH_BANK_DATABASE_URL"),
        ("EVENTMESH_BNK_DATABASE_URL", "EVENTMESH_BANK_DATABASE_URL"),
        ("EVENTMESH_PREFECTH", "EVENTMESH_PREFETCH"),
        ("EVENTMESH_WORKERS", None),
        ("EVENTMESH_ORDERS_DATABASE_URL", None),
    ],
)
def test_a_similar_name_is_suggested(
    monkeypatch: pytest.MonkeyPatch, name: str, suggestion: str | None
) -> None:
    monkeypatch.setenv(name, "x")
    assert [each.nearest for each in unknown_variables(load_settings(), ["bank", "till"])] == [
        suggestion
    ]


def test_using_a_service_in_a_program_warns_about_misspelt_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the program would use another database than the worker.

    A variable that may be the database of another service causes no warning.
    """
    monkeypatch.setenv("EVENTMESH_ORDERS_DATABASE_URL", "sqlite:///x.db")
    assert Service("bank").settings
    monkeypatch.setenv("EVENTMESH_BNK_DATABASE_URL", "sqlite:///x.db")
    with pytest.warns(UserWarning, match="Did you mean EVENTMESH_BANK_DATABASE_URL"):
        assert Service("bank").settings


@pytest.mark.parametrize("known_by", ["services/", "pyproject.toml"])
def test_the_database_of_another_known_service_is_not_called_a_misspelt_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known_by: str
) -> None:
    """It is used, however much its name is like this service's; what is like it is misspelt."""
    monkeypatch.chdir(tmp_path)
    if known_by == "services/":
        (tmp_path / "services/drivers").mkdir(parents=True)
        (tmp_path / "services/drivers/service.py").touch()
    else:
        (tmp_path / "pyproject.toml").write_text(
            '[tool.eventmesh.services]\ndrivers = "fleet:drivers"\n'
        )
    monkeypatch.setenv("EVENTMESH_DRIVERS_DATABASE_URL", "sqlite:///x.db")
    assert Service("riders").settings
    monkeypatch.delenv("EVENTMESH_DRIVERS_DATABASE_URL")
    monkeypatch.setenv("EVENTMESH_DRIVRS_DATABASE_URL", "sqlite:///x.db")
    with pytest.warns(UserWarning, match="Did you mean EVENTMESH_DRIVERS_DATABASE_URL"):
        assert Service("riders").settings


def test_a_database_variable_beside_that_of_the_service_is_of_another_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTMESH_RIDERS_DATABASE_URL", "sqlite:///x.db")
    monkeypatch.setenv("EVENTMESH_DRIVERS_DATABASE_URL", "sqlite:///y.db")
    assert Service("riders").settings


def test_a_line_of_the_env_file_without_a_value_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    for line in ("EVENTMESH_BROKER_URL redis://x", "EVENTMESH_BROKER_URL"):
        file.write_text(f"OTHER=1\n# EVENTMESH_PREFETCH is not set\n{line}\n")
        with pytest.raises(UsageError, match=r"Line 3 of .*\.env is not NAME=value"):
            load_settings(file)
