"""URLs of services' databases, as they are written in environment variables."""

from __future__ import annotations

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from eventmesh.errors import UsageError
from eventmesh.persistence.dialects.postgresql.url import split_hosts
from eventmesh.persistence.dialects.registry import DIALECTS
from eventmesh.redact import redact, redact_error

EXAMPLES = (
    "postgresql://user:password@host:port/database, mariadb://user:password@host:port/database or "
    "sqlite:///path/to/file.db"
)
"""What to write, for error messages."""


def parse_url(url: str, service: str) -> URL:
    """The URL with the driver that EventMesh uses. UsageError for what is not a URL, a kind of
    database that EventMesh does not know, and parameters that are not understood."""
    variable = f"EVENTMESH_{service.upper()}_DATABASE_URL"
    try:
        parsed = make_url(split_hosts(url))
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise UsageError(f"{variable} is not a database URL. Write {EXAMPLES}.") from None
    if backend == "postgres":
        backend = "postgresql"
    if backend == "mysql":
        raise UsageError(
            f"{variable} names a mysql database, in which EventMesh cannot keep its promises: it "
            f"needs INSERT … RETURNING, which MySQL does not have. If the server is MariaDB, write "
            f"mariadb://; else use postgresql:// or sqlite:///."
        )
    if backend not in DIALECTS:
        raise UsageError(
            f"{variable} names a database of the kind {redact_error(repr(backend), url)}, which "
            f"EventMesh does not know. Use postgresql://, mariadb:// or sqlite:///."
        )
    if parsed.port is not None and not 0 < parsed.port < 2**16:  # uvloop would use its lower bits
        raise UsageError(
            f"{variable} names the port {redact_error(parsed.port, url)}; ports go from 1 to 65535."
        )
    try:
        parsed = DIALECTS[backend].normal_url(parsed, variable)
    except UsageError as error:  # a password that was not escaped may look like parameters
        raise UsageError(redact_error(error, url)) from None
    return parsed.set(drivername=DIALECTS[backend].driver)


def is_file(url: URL) -> bool:
    """Whether a URL from `parse_url` names a file, which opening the database would make."""
    return DIALECTS[url.get_backend_name()].is_file


def shown(url: URL) -> str:
    """A database's URL for people and logs, without passwords and the paths of keys."""
    return redact(url.render_as_string(hide_password=True))
