"""The URL of a RabbitMQ broker, or of a cluster of them: `amqp://user:password@a:5672,b:5672/vhost`.

Options follow as aiormq spells them: `?heartbeat=30`, and for `amqps://` `cafile`, `capath`,
`cadata`, `certfile`, `keyfile` and `no_verify_ssl`. Pure, but for a look at the named files.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from eventmesh.errors import UsageError
from eventmesh.redact import redact, redact_error

_FILES = ("cafile", "certfile", "keyfile", "capath")


def nodes(url: str) -> tuple[str, ...]:
    """One URL for each host that the URL names, in its order; UsageError for one without a host,
    with a bad port, or with a certificate that is not there."""
    try:
        parts = urlsplit(url)
        user, at, hosts = parts.netloc.rpartition("@")
        found = tuple(_node(parts, user + at + host.strip()) for host in hosts.split(","))
    except ValueError as error:
        raise UsageError(
            f"The broker URL {redact(url)!r} cannot be understood: "
            f"{redact_error(error, url)}. Write it as "
            f"amqp://user:password@host:port/virtualhost, with commas between several host:port."
        ) from None
    for name, value in parse_qsl(parts.query):
        if name in _FILES and not Path(value).exists():
            raise UsageError(
                f"The broker URL {redact(url)!r} names the {name} "
                f"{redact_error(repr(value), url)}, which is not there: "
                f"correct the path."
            )
    return found


def _node(parts: SplitResult, netloc: str) -> str:
    """The URL of one host; ValueError when it is none."""
    node = parts._replace(netloc=netloc)
    if not node.hostname:
        raise ValueError("it names no host")
    _ = node.port  # raises for a port that is no number of a port
    return urlunsplit(node)
