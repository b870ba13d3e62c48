"""RabbitMQ's management API: what AMQP does not tell, such as how many messages workers hold.

It is asked only where its URL is set. Its figures are a few seconds old. Each request is one
connection, in a thread, because an operator asks seldom and no HTTP client is needed for that.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from eventmesh.errors import Unreachable, UsageError
from eventmesh.redact import redact, redact_error
from eventmesh.transports.hosts import split_hosts

VARIABLE = "EVENTMESH_RABBITMQ_MANAGEMENT_URL"

TIMEOUT = 5.0
"""Seconds for one answer."""

MOST_BYTES = 64 * 1024 * 1024
"""The largest answer: about 50,000 queues with the columns that are asked for."""

QUEUE_COLUMNS = (
    "name,type,messages_ready,messages_unacknowledged,consumers,policy,effective_policy_definition,"
    "state"
)


@dataclass(frozen=True, slots=True)
class ManagedQueue:
    """A queue, as the management API knows it; None for figures that it does not have yet, as in
    the first seconds of a queue."""

    name: str
    kind: str
    ready: int | None
    unacknowledged: int | None
    consumers: int | None
    policy: str
    state: str
    policy_definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and the server's time when it was given, to the second."""

    content: Any
    time: datetime | None


class Management:
    """The management API of the broker at `broker_url`; UsageError for a URL that is not one."""

    def __init__(self, url: str, broker_url: str) -> None:
        self._url = url
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise self._unusable(str(error)) from None
        if parts.scheme not in ("http", "https") or not self._host:
            raise self._unusable("it does not begin with http:// or https:// and a host")
        self._encrypted = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        login = urlsplit(split_hosts(broker_url)[0]) if parts.username is None else parts
        user, password = (unquote(part or "guest") for part in (login.username, login.password))
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._virtual_host = quote(virtual_host(broker_url), safe="")

    def _unusable(self, why: str) -> UsageError:
        return UsageError(
            f"{VARIABLE} is {redact(self._url)!r}, which cannot be used: "
            f"{redact_error(why, self._url)}. Write it as http://user:password@host:15672/."
        )

    async def queues(self, prefix: str) -> dict[str, ManagedQueue]:
        """The queues of the virtual host whose names begin so, by name."""
        found = (await self._get(f"queues/{self._virtual_host}?columns={QUEUE_COLUMNS}")).content
        queues = (queue_of(each) for each in found if isinstance(each, dict))
        return {each.name: each for each in queues if each.name.startswith(prefix)}

    async def queue(self, name: str) -> ManagedQueue | None:
        """The queue of this name; None if there is none."""
        path = f"queues/{self._virtual_host}/{quote(name, safe='')}?columns={QUEUE_COLUMNS}"
        answer = await self._get(path, absent_is_none=True)
        return queue_of(answer.content) if isinstance(answer.content, dict) else None

    async def nodes(self) -> Answer:
        """The nodes, with their alarms, and the time of the one that answered."""
        return await self._get("nodes?columns=name,running,mem_alarm,disk_free_alarm,partitions")

    async def _get(self, path: str, *, absent_is_none: bool = False) -> Answer:
        try:
            async with asyncio.timeout(TIMEOUT * 2):
                status, time, body = await asyncio.to_thread(self._request, path)
            if status == http.client.NOT_FOUND and absent_is_none:
                return Answer(None, time)
            if status != http.client.OK:
                raise self._unreachable(_REFUSALS.get(status, f"it answers with status {status}"))
            return Answer(json.loads(body), time)
        except TimeoutError:
            raise self._unreachable(f"it took longer than {TIMEOUT:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(str(error) or type(error).__name__) from error

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(
            f"The management API of RabbitMQ at {redact(self._url)} cannot be used: "
            f"{redact_error(why, self._url).rstrip('.')}. Correct {VARIABLE}, or enable the plugin "
            f"by `rabbitmq-plugins enable rabbitmq_management`."
        )

    def _request(self, path: str) -> tuple[int, datetime | None, bytes]:
        if self._encrypted:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        try:
            headers = {"Authorization": f"Basic {self._login}", "Accept": "application/json"}
            connection.request("GET", f"{self._path}/api/{path}", headers=headers)
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES + 1)
            if len(body) > MOST_BYTES:
                raise ValueError(f"its answer is larger than {MOST_BYTES:,} bytes")
            return answer.status, _time_of(answer.headers.get("Date", "")), body
        finally:
            connection.close()


_REFUSALS = {
    401: "it does not accept the user and password",
    403: "the user may not use it: give it the tag `monitoring`",
    404: "it does not know the virtual host of EVENTMESH_BROKER_URL",
}


def queue_of(said: Mapping[str, Any]) -> ManagedQueue:
    """A queue from the API's description of it, in which any member may be missing."""
    definition = said.get("effective_policy_definition")
    return ManagedQueue(
        name=str(said.get("name", "")),
        kind=str(said.get("type") or "classic"),
        ready=_number(said.get("messages_ready")),
        unacknowledged=_number(said.get("messages_unacknowledged")),
        consumers=_number(said.get("consumers")),
        policy=str(said.get("policy") or ""),
        state=str(said.get("state") or ""),
        policy_definition=definition if isinstance(definition, dict) else {},
    )


def virtual_host(broker_url: str) -> str:
    """The virtual host that a broker URL names."""
    return unquote(urlsplit(split_hosts(broker_url)[0]).path[1:]) or "/"


def _number(said: object) -> int | None:
    return said if isinstance(said, int) else None


def _time_of(said: str) -> datetime | None:
    try:
        return parsedate_to_datetime(said)
    except ValueError:
        return None
