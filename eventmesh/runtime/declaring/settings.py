"""What an operator sets, by environment variables that begin with `EVENTMESH_`.

Commands also read a file `.env` in the folder they are run in. A variable of the real environment
takes precedence over the file. Other names in the file are ignored. A name with our prefix that is
not a setting is reported, with the nearest name that is one, because a typing error would otherwise
silently leave the default in force.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from eventmesh.duration import seconds
from eventmesh.errors import UsageError
from eventmesh.redact import redact
from eventmesh.transports.base import TransportOptions
from eventmesh.wire.envelope import DEFAULT_MAX_BYTES

UNROUTED_MAX = 1_000_000
"""Messages of a name that are kept while no subscription takes them, unless a service says else."""

_PREFIX = "EVENTMESH_"
_DATABASE = "_DATABASE_URL"
_OF_OUR_TESTS = ("EVENTMESH_TEST_", "EVENTMESH_SOAK_", "EVENTMESH_FUZZ_")
_ALIKE = 0.7
"""How much alike two names must be, from 0 to 1, for one to be suggested instead of the other."""


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


def _lower_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """One frozen object, handed to whoever needs it."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    broker_url: str = "sqlite:///.eventmesh/broker.db"
    """Which broker: sqlite:///…, redis://, rediss://, amqp://, amqps:// or memory://."""

    broker_prefix: str = Field(default="eventmesh", pattern=r"^[a-z][a-z0-9_.-]{0,62}$")
    """What the name of everything made on the broker begins with."""

    rabbitmq_management_url: str | None = None
    """RabbitMQ's management API, such as http://user:password@host:15672/, by which `status` and
    `doctor` learn what AMQP does not tell. Without user and password, those of the broker's URL."""

    visibility_timeout: Seconds = 30.0
    """After how long without a sign of life a worker's deliveries go to another worker."""

    prefetch: int = Field(default=200, ge=1, le=10_000)
    """How many deliveries a subscription's consumer may hold at once."""

    group_size: int = Field(default=100, ge=1, le=1_000)
    """How many messages share one transaction at the most."""

    group_time: Seconds = 0.05
    """How long a transaction takes further messages."""

    max_deliveries: int = Field(default=10, ge=1)
    """How often a message may be delivered to workers that die while they handle it, before it is a
    poison message and becomes a dead letter; at least five. From the fourth delivery on, the
    service's database counts how often its handling began; in a service without a database,
    messages are then fetched one by one."""

    max_message_bytes: int = Field(default=DEFAULT_MAX_BYTES, ge=1)
    """The largest data of a message that may be published."""

    lease_time: Seconds = 3.0
    """After how long without a sign of life a relay's leases on the outbox go to another relay."""

    drain_timeout: Seconds = 30.0
    """How long handlers may take to finish when the worker is told to stop."""

    inbox_window: Seconds = 7 * 86_400.0
    """How long a message that took effect is remembered: longer than any copy of it may still be on
    its way, in a retry or in a queue that nobody reads, or it would take effect again. A dead
    letter that is replayed later than this counts as new. The same for all processes of a service,
    and for services that share a database: any of them clears it for all."""

    journal: bool = True
    """Whether the inbox also tells what each message was, why it came and at which attempt it took
    effect, which `eventmesh why` reads. It costs 4 % of the work of a fast handler."""

    saga_window: Seconds = 30 * 86_400.0
    """How long a saga that has ended is kept."""

    reaction_window: Seconds = 90 * 86_400.0
    """How long it is remembered what a reaction has done: an event that undoes it later than this
    finds nothing to undo."""

    action_window: Seconds = 365 * 86_400.0
    """How long it is recorded what operators did."""

    health_port: int | None = Field(default=None, ge=0, le=65_535)
    """Where probes and metrics are answered; nowhere unless it is set. With several processes, each
    answers on a port of its own, counted up from this one."""

    health_host: str = "0.0.0.0"  # noqa: S104  # probes come from outside the container
    """The address on which probes are answered: by default all addresses of the machine, because
    probes come from outside a container. 127.0.0.1 answers to the machine itself only."""

    outbox_max_age: Seconds = 60.0
    """How long a message may wait in the outbox before the worker says that it is not ready."""

    unrouted_max: int = Field(default=UNROUTED_MAX, ge=0)
    """How many messages of each name that a service publishes are kept while no subscription takes
    them; beyond that the oldest are deleted, after a warning at half of it. 0 keeps all. The
    default is far more than piles up while services are deployed one after another (28 hours at 10
    a second), and about a gigabyte of usual messages, which does not yet fill a broker."""

    event_loop: Literal["auto", "asyncio", "uvloop"] = "auto"
    """Which event loop a worker runs on; by default uvloop where it is installed."""

    schemas: Path = Path("schemas")
    """Where the frozen schemas are."""

    trace_parents: Literal["none", "commands", "all"] = "none"
    """For which messages the OpenTelemetry span of their handling is below the span in which they
    were created, so that one trace shows both: none; commands, and what answers the commands of a
    saga; or all. Links to that span are there in any case."""

    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(_lower_case)
    ] = "info"

    database_urls: Mapping[str, str] = Field(default_factory=dict)
    """Databases by service, for code that sets up services itself; else see `database_url`."""

    _env_file: Mapping[str, str] = PrivateAttr(default_factory=dict)
    """Our variables in the file `.env`, if it was read."""

    def database_url(self, service: str) -> str:
        """`EVENTMESH_<SERVICE>_DATABASE_URL`, or a SQLite file of the service's own."""
        return self.given_database_url(service) or f"sqlite:///.eventmesh/{service}.db"

    def given_database_url(self, service: str) -> str | None:
        """The database that was set for this service, if one was."""
        variable = database_variable(service)
        return (
            self.database_urls.get(service)
            or os.environ.get(variable)
            or self._env_file.get(variable)
        )

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """For `repr` and `str`, which must not show the passwords of URLs."""
        for name, value in super().__repr_args__():
            match name:
                case "broker_url":
                    yield name, redact(self.broker_url)
                case "rabbitmq_management_url" if self.rabbitmq_management_url is not None:
                    yield name, redact(self.rabbitmq_management_url)
                case "database_urls":
                    yield name, {key: redact(url) for key, url in self.database_urls.items()}
                case _:
                    yield name, value

    @property
    def transport_options(self) -> TransportOptions:
        """The settings that transports use."""
        return TransportOptions(
            visibility_timeout=self.visibility_timeout, prefix=self.broker_prefix
        )


@dataclass(frozen=True)
class UnknownVariable:
    """A variable that looks like one of ours and has no effect."""

    name: str
    nearest: str | None

    def __str__(self) -> str:
        hint = f" Did you mean {self.nearest}?" if self.nearest else ""
        return f"{self.name} is not a setting of EventMesh and is ignored.{hint}"


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """The settings of this process's environment and of a file; UsageError naming the variable
    that is wrong."""
    try:
        in_file = read_env_file(env_file)
        taken = {name.upper() for name in os.environ}
        settings = Settings(**_fields({n: v for n, v in in_file.items() if n not in taken}))
    except SettingsError as error:
        raise UsageError(f"The environment holds settings that cannot be read: {error}.") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{_PREFIX}{'_'.join(map(str, problem['loc'])).upper()}: {_in_words(problem)}"
            for problem in error.errors(include_url=False)
        )
        raise UsageError(
            f"The environment holds settings that cannot be used: {problems}."
        ) from None
    settings._env_file = in_file
    return settings


def read_env_file(path: Path) -> dict[str, str]:
    """Our variables in a file of lines NAME=value, their names in upper case; none where there is
    no such file. UsageError for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The settings in {path.absolute()} cannot be read: {error}. Write it in UTF-8, in "
            f"lines of NAME=value, or take it away."
        ) from None
    from dotenv import dotenv_values  # only where there is such a file
    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text)):
        ours = _PREFIX in binding.original.string.upper()
        if ours and (binding.error or (binding.key and binding.value is None)):
            raise UsageError(
                f"Line {binding.original.line} of {path.absolute()} is not NAME=value, so that its "
                f"setting would be ignored."
            )
    values = dotenv_values(stream=io.StringIO(text))
    return {
        name.upper(): value
        for name, value in values.items()
        if name.upper().startswith(_PREFIX) and value is not None
    }


def unknown_variables(settings: Settings, services: Collection[str]) -> list[UnknownVariable]:
    """What the environment and the file of these settings hold that has no effect in a project of
    these services, sorted."""
    fields = [f"{_PREFIX}{field.upper()}" for field in Settings.model_fields]
    databases = [database_variable(service) for service in services]
    unknown = []
    for name in sorted(_given(settings).difference(fields, databases)):
        if name.startswith(_PREFIX) and not name.startswith(_OF_OUR_TESTS):
            # That this is to be a database is sure; of which service, need not be.
            alike = 0.3 if name.endswith(_DATABASE) else _ALIKE
            unknown.append(UnknownVariable(name, _nearest(name, [*fields, *databases], alike)))
    return unknown


def warn_of_unknown_variables(settings: Settings, services: Collection[str]) -> None:
    """Warn, as a library does, of what this program's environment holds that has no effect. These
    are the services that the program knows of. There may be more, so that a database is taken to be
    another one's if it is not like that of one of these, or if that is given, too."""
    given = _given(settings)
    databases = [each for each in map(database_variable, services) if each not in given]
    for unknown in unknown_variables(settings, services):
        of_another = unknown.name.endswith(_DATABASE) and not _nearest(unknown.name, databases)
        if not of_another:
            warnings.warn(str(unknown), stacklevel=3)


def _given(settings: Settings) -> set[str]:
    """The names of all variables in the environment and in the file of these settings."""
    return {name.upper() for name in os.environ} | {*settings._env_file}


def _nearest(name: str, known: Sequence[str], alike: float = _ALIKE) -> str | None:
    """The known name that is so much like this one that it may have been meant. What all of them
    begin and end with tells nothing."""
    ending = _DATABASE if name.endswith(_DATABASE) else ""
    cores = {
        each.removeprefix(_PREFIX).removesuffix(ending): each
        for each in known
        if each.endswith(ending)
    }
    core = name.removeprefix(_PREFIX).removesuffix(ending)
    found = difflib.get_close_matches(core, cores, 1, cutoff=alike)
    return cores[found[0]] if found else None


def _in_words(problem: ErrorDetails) -> str:
    """What is wrong with the value of a variable. Values of kinds that may be secret are not
    shown."""
    given, limits = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "int_parsing":
            return f"{given!r} is not a whole number"
        case "bool_parsing":
            return f"{given!r} is neither true nor false"
        case "greater_than":
            return f"{given} is not greater than {limits['gt']}"
        case "greater_than_equal":
            return f"{given} is too small: the least is {limits['ge']}"
        case "less_than_equal":
            return f"{given} is too large: the most is {limits['le']:,}"
        case "literal_error":
            return f"{given!r} is not one of {limits['expected']}"
        case "string_pattern_mismatch":  # only the prefix has a pattern
            return (
                f"{given!r} cannot begin names on a broker: write up to 63 small letters, digits, "
                f"dots, hyphens and underscores, a letter first"
            )
        case _:
            return problem["msg"].removeprefix("Value error, ").rstrip(".")


def database_variable(service: str) -> str:
    """The environment variable that names the database of a service."""
    return f"{_PREFIX}{service.upper()}{_DATABASE}"


def _fields(variables: Mapping[str, str]) -> dict[str, Any]:
    """The fields of Settings that these variables set."""
    fields: dict[str, Any] = {
        field: variables[name]
        for field in Settings.model_fields
        if (name := f"{_PREFIX}{field.upper()}") in variables
    }
    if "database_urls" in fields:
        try:
            fields["database_urls"] = json.loads(fields["database_urls"])
        except ValueError:
            raise UsageError(f"{_PREFIX}DATABASE_URLS in .env is not valid JSON.") from None
    return fields
