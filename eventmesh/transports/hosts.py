"""URLs with several hosts: `amqp://user:password@a:5672,[::1]:5672/vhost`.

`urlsplit` is not asked for their parts, because from Python 3.14 on it refuses a list of hosts with
an IPv6 address behind the first.
"""

from __future__ import annotations


def split_hosts(url: str) -> list[str]:
    """The URL once for each of its hosts, in their order."""
    start, separator, rest = url.partition("//")
    end = min((rest.index(each) for each in "/?#" if each in rest), default=len(rest))
    user, at, hosts = rest[:end].rpartition("@")
    return [f"{start}{separator}{user}{at}{host.strip()}{rest[end:]}" for host in hosts.split(",")]
