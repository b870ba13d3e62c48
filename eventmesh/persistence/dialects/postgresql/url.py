"""The parameters of a PostgreSQL URL: those of PostgreSQL's own clients, such as `psql`, and a few
of asyncpg's.

A parameter that EventMesh does not understand is an error: if it were ignored, it could be the one
that was to protect the connection.

    postgresql://host/db?sslmode=verify-full&sslrootcert=ca.pem&application_name=bank
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote, urlencode

from sqlalchemy.engine import URL

from eventmesh.errors import UsageError
from eventmesh.persistence.dialects.postgresql.pooling import PoolMode

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_SYSTEM = "system"
"""For `sslrootcert`: the certificate authorities that this machine trusts, as in libpq."""

_PLACE = ("host", "port", "dbname", "database", "user", "password")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
# asyncpg reads these as libpq does, if it is given them in a URL.
_READ_BY_DRIVER = (
    *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    *("passfile", "service", "target_session_attrs", "krbsrvname", "gsslib"),
)
_READ_HERE = (
    *("ssl", "servicefile", "connect_timeout", "timeout", "command_timeout", "pool_mode"),
    *("pgbouncer", "application_name", "fallback_application_name", "options"),
)

_KEEPALIVE = "Leave it out: EventMesh makes each end notice within 20 s that the other has gone"
_STATEMENTS = "Leave it out: EventMesh detects a pooler, and prepares statements accordingly"
# Parameters of which asyncpg supports only some values, and what to do about the others.
_ONLY: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "channel_binding": (
            ("disable", "prefer"),
            "The driver has no channel binding. Leave it out, and write sslmode=verify-full with "
            "sslrootcert, which protects from the same attacks",
        ),
        "client_encoding": (
            ("utf8", "utf-8", "auto"),
            "The encoding is always UTF-8. Leave it out",
        ),
        "gssencmode": (("disable", "prefer"), "The driver encrypts by TLS only. Use sslmode"),
        "keepalives": (("1",), _KEEPALIVE),
        "load_balance_hosts": (("disable",), "Hosts are tried in their order. Leave it out"),
        "sslcertmode": (("allow",), "A certificate is sent where sslcert names one. Leave it out"),
        "sslcompression": (("0",), "TLS is not compressed. Leave it out"),
        "sslsni": (("1",), "The server is always told the name of the host. Leave it out"),
    }
)
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "direct_tls": "Write sslnegotiation=direct",
        "hostaddr": "Write the address as the host",
        "keepalives_count": _KEEPALIVE,
        "keepalives_idle": _KEEPALIVE,
        "keepalives_interval": _KEEPALIVE,
        "prepared_statement_cache_size": _STATEMENTS,
        "replication": "EventMesh needs an ordinary connection. Leave it out",
        "require_auth": "The driver cannot do that. Leave it out, and write sslmode=verify-full",
        "requirepeer": "The driver cannot do that. Leave it out",
        "requiressl": "Write sslmode=require",
        "sslcrldir": "Write sslcrl, with one file",
        "statement_cache_size": _STATEMENTS,
        "tcp_user_timeout": _KEEPALIVE,
    }
)
_KNOWN = (*_PLACE, *_READ_BY_DRIVER, *_READ_HERE, *_ONLY, *_REFUSED)
_HIDDEN_FILES = ("sslkey", "passfile")

_HOST_LIST = re.compile(
    r"(?P<before>postgres(?:ql)?(?:\+\w+)?://(?:[^/?#]*@)?)(?P<hosts>[^/?#@]*,[^/?#@]*)(?P<after>[^@]*)$",
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """The meaning of a URL's parameters. `arguments` are asyncpg's; `sslmode` is None where the URL
    says nothing; `pool_mode` is explained in `pooling`."""

    arguments: Mapping[str, Any] = field(repr=False)
    sslmode: str | None
    pool_mode: PoolMode | None


def split_hosts(url: str) -> str:
    """Move the hosts and ports of a URL with several, "h1:5432,h2:5432", to its parameters, where
    SQLAlchemy can read them. Any other URL is returned unchanged."""
    match = _HOST_LIST.match(url)
    if match is None:
        return url
    hosts, ports = zip(*map(_host_and_port, match["hosts"].split(",")), strict=True)
    path, mark, query = match["after"].partition("?")
    added = f"host={quote(','.join(hosts))}"
    if any(ports):
        added += f"&port={','.join(port or '5432' for port in ports)}"
    return f"{match['before']}{path}?{added}{'&' if mark else ''}{query}"


def normal(url: URL, variable: str) -> URL:
    """Move the user, password, single host and database from the parameters to their places in the
    URL; UsageError for parameters that are not understood."""
    query = {name: _single(name, value, variable) for name, value in url.query.items()}
    for name, value in query.items():
        _refuse_unknown(name, value, variable)
    host = unquote(url.host) if url.host else ""
    if host.startswith("/"):  # a socket's folder, percent-encoded
        url, query["host"] = url.set(host=""), host
    database = query.pop("dbname", None) or query.pop("database", None)
    query.pop("database", None)
    user, password = query.pop("user", None), query.pop("password", None)
    url = url.set(
        username=url.username or user,
        password=url.password or password,
        database=url.database or database,
    )
    where = query.get("host", "")
    if url.host and where:
        raise UsageError(f"{variable} names hosts in two places. Write them in one.")
    if where and "," not in where and not where.startswith("/"):
        host, port = _host_and_port(query.pop("host"))
        port = query.pop("port", "") or port
        url = url.set(host=host, port=_number("port", port, variable) if port else None)
    elif url.host and (port := query.pop("port", "")):
        url = url.set(port=_number("port", port, variable))
    return url.set(query=query)


def parameters(url: URL, variable: str) -> Parameters:
    """The meaning of the parameters of a URL from `normal`; UsageError for values without one."""
    query: dict[str, str] = {name: str(value) for name, value in url.query.items()}
    arguments: dict[str, Any] = {}
    if "host" in query:
        hosts, ports = zip(*map(_host_and_port, query["host"].split(",")), strict=True)
        arguments["host"] = list(hosts)
        given = [port or "5432" for port in ports] if any(ports) else []
        given = query["port"].split(",") if "port" in query else given
        if len(given) not in (0, 1, len(hosts)):
            raise UsageError(
                f"{variable} names {len(given)} ports for {len(hosts)} hosts. Write one port, or "
                f"one for each host."
            )
        if given:
            arguments["port"] = [_number("port", port, variable) for port in given]
    elif "port" in query:
        arguments["port"] = _number("port", query["port"], variable)
    if sslmode := _sslmode(query, variable):
        query["sslmode"] = sslmode
    if read := {name: query[name] for name in _READ_BY_DRIVER if query.get(name)}:
        arguments["dsn"] = f"postgresql://?{urlencode(read)}"
    if "servicefile" in query:
        arguments["servicefile"] = query["servicefile"]
    if seconds := query.get("connect_timeout") or query.get("timeout"):
        # As in libpq, 0 and negative numbers mean no limit.
        limit = _number("connect_timeout", seconds, variable, signed=True)
        arguments["timeout"] = limit if limit > 0 else None
    if seconds := query.get("command_timeout"):
        arguments["command_timeout"] = _number("command_timeout", seconds, variable)
    settings = {name: query[name] for name in ("application_name", "options") if query.get(name)}
    if "application_name" not in settings and query.get("fallback_application_name"):
        settings["application_name"] = query["fallback_application_name"]
    if settings:
        arguments["server_settings"] = settings
    return Parameters(arguments, sslmode, _pool_mode(query, variable))


def check_files(url: URL, variable: str) -> ssl.SSLContext | None:
    """UsageError for files that the parameters name and that cannot be used. Returns the TLS
    context to use; None where asyncpg makes it from the parameters by itself."""
    query = {name: str(value) for name, value in url.query.items()}
    for name in _FILES:
        path = query.get(name)
        if path and not (name == "sslrootcert" and path == _SYSTEM) and not _readable(path):
            shown = "a file" if name in _HIDDEN_FILES else f"the file {path}"
            raise UsageError(
                f"{variable} names {shown} by {name} that is not there or cannot be read. Correct "
                f"its path, or its permissions."
            )
    system = query.get("sslrootcert") == _SYSTEM
    context = ssl.create_default_context() if system else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (root := query.get("sslrootcert")) and not system:
        with _usable("sslrootcert", variable):
            context.load_verify_locations(cafile=root)
    if crl := query.get("sslcrl"):
        with _usable("sslcrl", variable):
            context.load_verify_locations(cafile=crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if cert := query.get("sslcert"):
        with _usable("sslcert, with sslkey and sslpassword,", variable):
            password = query.get("sslpassword", "")
            context.load_cert_chain(cert, query.get("sslkey") or _key(), password=lambda: password)
    for name, attribute in (("min", "minimum_version"), ("max", "maximum_version")):
        if version := query.get(f"ssl_{name}_protocol_version"):
            try:
                setattr(context, attribute, ssl.TLSVersion[version.replace(".", "_")])
            except KeyError:
                raise UsageError(
                    f"{variable} has ssl_{name}_protocol_version={version}. Write TLSv1.2 or "
                    f"TLSv1.3."
                ) from None
    if not system:
        return None
    context.set_alpn_protocols(["postgresql"])  # which sslnegotiation=direct needs
    return context


def _sslmode(query: Mapping[str, str], variable: str) -> str | None:
    """The `sslmode` that the parameters amount to; None where they say nothing."""
    said = query.get("ssl", "").lower()
    # libpq knows ssl=true; the others are asyncpg's, and what people write.
    said = {"true": "require", "1": "require", "false": "disable", "0": "disable"}.get(said, said)
    mode = query.get("sslmode", "")
    if mode and said and mode != said:
        raise UsageError(f"{variable} has ssl and sslmode, which contradict each other. Keep one.")
    mode = mode or said
    if mode and mode not in SSL_MODES:
        raise UsageError(
            f"{variable} has sslmode={mode}, which does not exist. Write one of "
            f"{', '.join(SSL_MODES)}."
        )
    if query.get("sslrootcert") == _SYSTEM:
        if mode not in ("", "verify-full"):
            raise UsageError(
                f"{variable} has sslrootcert=system with sslmode={mode}. Anybody can get a "
                f"certificate of those authorities, so only sslmode=verify-full protects."
            )
        return "verify-full"
    if query.get("sslnegotiation") == "direct" and mode in ("", *SSL_MODES[:3]):
        raise UsageError(
            f"{variable} has sslnegotiation=direct, which needs sslmode=require, verify-ca or "
            f"verify-full. Write one of them."
        )
    return mode or None


def _pool_mode(query: Mapping[str, str], variable: str) -> PoolMode | None:
    said = query.get("pool_mode", "")
    if said not in ("", "session", "transaction"):
        raise UsageError(
            f"{variable} has pool_mode={said}. EventMesh works with session and transaction."
        )
    if said == "session":
        return "session"
    # Prisma's spelling; we would detect such a pooler anyway.
    return "transaction" if said or query.get("pgbouncer", "") in ("true", "1") else None


def _refuse_unknown(name: str, value: str, variable: str) -> None:
    if name in _REFUSED:
        raise UsageError(f"{variable} has the parameter {name}. {_REFUSED[name]}.")
    if name in _ONLY:
        allowed, advice = _ONLY[name]
        if value.lower() not in allowed:
            raise UsageError(f"{variable} has {name}={value}. {advice}.")
    if name not in _KNOWN:
        near = get_close_matches(name, _KNOWN, 1)
        advice = (
            f"Did you mean {near[0]}?"
            if near
            else f"A setting of the server is written as options=-c%20{name}%3Dvalue."
        )
        raise UsageError(
            f"{variable} has the parameter {name}, which EventMesh does not know. {advice}"
        )


def _single(name: str, value: str | tuple[str, ...], variable: str) -> str:
    if isinstance(value, str):
        return value
    if name in ("host", "port"):
        return ",".join(value)
    raise UsageError(f"{variable} has the parameter {name} {len(value)} times. Write it once.")


def _host_and_port(written: str) -> tuple[str, str]:
    if written.startswith("["):
        host, _, port = written[1:].partition("]")
        return host, port.removeprefix(":")
    if written.startswith("/") or written.count(":") > 1:  # a socket's folder, or a bare IPv6
        return written, ""
    host, _, port = written.partition(":")
    return host, port


def _number(name: str, value: str, variable: str, *, signed: bool = False) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
        signed = False
    if not signed and (number < 1 or (name == "port" and number >= 2**16)):
        raise UsageError(f"{variable} has {name}={value}. Write a whole number, such as 10.")
    return number


def _key() -> str | None:
    """Where libpq and asyncpg look for the certificate's key unless sslkey is given."""
    usual = Path("~/.postgresql/postgresql.key").expanduser()
    return str(usual) if usual.exists() else None


def _readable(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except OSError:
        return False


@contextmanager
def _usable(name: str, variable: str) -> Iterator[None]:
    try:
        yield
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise UsageError(
            f"{variable} names a file by {name} that cannot be used for TLS ({reason}). It must be "
            f"PEM, and a key must belong to its certificate."
        ) from None
