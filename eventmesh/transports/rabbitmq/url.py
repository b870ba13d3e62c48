"""The URL of a RabbitMQ broker or cluster: `amqp://user:password@a:5672,b:5672/vhost`.

Options are those of aiormq: `?heartbeat=30`, and for `amqps://` `cafile`, `capath`, `cadata`,
`certfile`, `keyfile` and `no_verify_ssl`.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from eventmesh.errors import UsageError
from eventmesh.redact import redact, redact_error
from eventmesh.transports.hosts import split_hosts

_FILES = ("cafile", "certfile", "keyfile", "capath")


def nodes(url: str) -> tuple[str, ...]:
    """One URL for each host in the URL, in its order. UsageError for a URL without a host, with an
    invalid port, or with a certificate file that does not exist."""
    try:
        found = tuple(_node(each) for each in split_hosts(url))
    except ValueError as error:
        raise UsageError(
            f"The broker URL {redact(url)!r} is not valid: "
            f"{redact_error(error, url)}. Write it as "
            f"amqp://user:password@host:port/virtualhost, with commas between several host:port."
        ) from None
    for name, value in parse_qsl(urlsplit(found[0]).query):
        if name in _FILES and not Path(value).exists():
            raise UsageError(
                f"The broker URL {redact(url)!r} names the {name} "
                f"{redact_error(repr(value), url)}, which does not exist: "
                f"correct the path."
            )
    return found


def _node(url: str) -> str:
    """The URL of one host as it is usually written; ValueError if it is not valid."""
    node = urlsplit(url)
    if not node.hostname:
        raise ValueError("it has no host")
    _ = node.port  # raises for an invalid port
    return urlunsplit(node)
