"""What an operator sets, by environment variables that begin with `EVENTMESH_`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from eventmesh.duration import seconds
from eventmesh.errors import UsageError
from eventmesh.redact import redact
from eventmesh.transports.base import TransportOptions
from eventmesh.wire.envelope import DEFAULT_MAX_BYTES


def _seconds(value: object) -> object:
    """A duration with a unit, or a bare number of seconds as environments hold it: a text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return seconds(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """One frozen object, handed to whoever needs it."""

    model_config = SettingsConfigDict(env_prefix="EVENTMESH_", frozen=True, extra="ignore")

    broker_url: str = "sqlite:///.eventmesh/broker.db"
    """Which broker: sqlite:///…, redis://, rediss://, amqp://, amqps:// or memory://."""

    broker_prefix: str = Field(default="eventmesh", pattern=r"^[a-z][a-z0-9_.-]{0,62}$")
    """What the name of everything made on the broker begins with."""

    visibility_timeout: Seconds = 30.0
    """After how long without a sign of life a worker's deliveries go to another."""

    prefetch: int = Field(default=200, ge=1, le=10_000)
    """How many deliveries a subscription's consumer may hold at once."""

    group_size: int = Field(default=100, ge=1, le=1_000)
    """How many messages share one transaction at the most."""

    group_time: Seconds = 0.05
    """How long a transaction takes up further messages."""

    max_deliveries: int = Field(default=10, ge=1)
    """How often a message may be handed to workers that vanish while they handle it, before it
    counts as deadly; at least five. From the fourth time on, the service's database counts those
    that began; in a service without one, messages are then taken from the broker one by one."""

    max_message_bytes: int = Field(default=DEFAULT_MAX_BYTES, ge=1)
    """The largest data of a message that may be published."""

    lease_time: Seconds = 3.0
    """After how long without a sign of life a relay's part of the outbox goes to another."""

    drain_timeout: Seconds = 30.0
    """How long handlers may take to finish when the worker is told to stop."""

    inbox_window: Seconds = 7 * 86_400.0
    """How long a message that took effect is remembered: longer than any copy of it may still be on
    its way, in a retry or in a queue that nobody reads, or it would take effect again. A dead
    letter that is replayed later than this counts as new. The same for all processes of a service,
    and for services that share a database: any of them clears it for all."""

    saga_window: Seconds = 30 * 86_400.0
    """How long a saga that has ended is kept."""

    health_port: int | None = Field(default=None, ge=0, le=65_535)
    """Where probes and metrics are answered; nowhere unless it is set. With several processes, each
    answers on a port of its own, counted up from this one."""

    health_host: str = "0.0.0.0"  # noqa: S104  # probes come from outside the container
    """The address on which probes are answered."""

    outbox_max_age: Seconds = 60.0
    """How long a message may wait in the outbox before the worker says that it is not ready."""

    event_loop: Literal["auto", "asyncio", "uvloop"] = "auto"
    """Which event loop a worker runs on; by default uvloop where it is installed."""

    schemas: Path = Path("schemas")
    """Where the frozen schemas are."""

    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_urls: Mapping[str, str] = Field(default_factory=dict)
    """Databases by service, for code that sets up services itself; else see `database_url`."""

    def database_url(self, service: str) -> str:
        """`EVENTMESH_<SERVICE>_DATABASE_URL`, or a SQLite file of the service's own."""
        return self.given_database_url(service) or f"sqlite:///.eventmesh/{service}.db"

    def given_database_url(self, service: str) -> str | None:
        """The database that was set for this service, if one was."""
        return self.database_urls.get(service) or os.environ.get(
            f"EVENTMESH_{service.upper()}_DATABASE_URL"
        )

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """For `repr` and `str`: URLs without their passwords."""
        for name, value in super().__repr_args__():
            match name:
                case "broker_url":
                    yield name, redact(self.broker_url)
                case "database_urls":
                    yield name, {key: redact(url) for key, url in self.database_urls.items()}
                case _:
                    yield name, value

    @property
    def transport_options(self) -> TransportOptions:
        """The part that transports know."""
        return TransportOptions(
            visibility_timeout=self.visibility_timeout, prefix=self.broker_prefix
        )


def load_settings() -> Settings:
    """The settings of this process's environment; UsageError naming the variable that is wrong."""
    try:
        return Settings()
    except SettingsError as error:
        raise UsageError(f"The environment holds settings that cannot be read: {error}.") from None
    except ValidationError as error:
        problems = "; ".join(
            f"EVENTMESH_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise UsageError(
            f"The environment holds settings that cannot be used: {problems}."
        ) from None
