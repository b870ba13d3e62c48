"""The outbox: what waits to be published, and what operators do to parked messages."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.site import FIRST_ANSWER, Form, Site
from eventmesh.operations.outbox import (
    count_outbox,
    find_waiting,
    list_outbox,
    retry_parked,
    skip_parked,
)
from eventmesh.persistence.outbox.parked import Waiting
from eventmesh.runtime.declaring.service import DeclaredService as Service

MOST = 200
"""Messages that are shown."""

MOST_KEYS = 50
"""Parked keys that are shown."""


class Outbox:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        query = request.query_params
        if (name := query.get("service")) is None:
            sample = await self._site.sampler.latest(FIRST_ANSWER)
            return self._site.page(request, "outboxes.html", status=sample and sample.status)
        service = self._site.service(name)
        parked, key = query.get("parked") == "1", query.get("key") or None
        message = query.get("message") or None
        counts = await count_outbox(self._site.reach, service, MOST_KEYS)
        messages = await list_outbox(
            self._site.reach, service, limit=MOST, parked=parked, key=key, name=message
        )
        return self._site.page(
            request,
            "outbox.html",
            service=service.name,
            counts=counts,
            messages=messages,
            is_cut=len(messages) >= MOST,
            parked=parked,
            key=key,
            message=message,
            total_parked=sum(each.number for each in counts.shares if each.state == "parked"),
        )

    async def message(self, request: Request) -> Response:
        service = self._site.service(request.query_params.get("service"))
        message_id = request.query_params.get("id", "")
        waiting = await self._waiting(service, message_id)
        if waiting is None:
            raise HTTPException(404, _gone(message_id))
        envelope = waiting.envelope
        return self._site.page(
            request,
            "outbox_message.html",
            service=service.name,
            waiting=waiting,
            data=self._site.masking.payload(envelope.name, envelope.data),
            attributes=sorted(envelope.attributes.items()),
        )

    async def retry(self, request: Request, form: Form) -> Response:
        """Publish one parked message again, or all."""
        service = self._site.service(form.one("service"))
        message_id = form.optional("id")
        retried = await retry_parked(
            self._site.reach,
            service,
            form.user.name,
            form.reason,
            ids=None if message_id is None else [message_id],
        )
        if not retried:
            raise HTTPException(409, _not_parked(message_id))
        return self._site.see(request, "/outbox", service=service.name)

    async def skip(self, request: Request, form: Form) -> Response:
        """Delete a parked message; the log of actions keeps a copy of it."""
        service = self._site.service(form.one("service"))
        message_id = form.one("id")
        waiting = await self._waiting(service, message_id)
        if waiting is None or waiting.state != "parked":
            raise HTTPException(409, _not_parked(message_id))
        if not await skip_parked(self._site.reach, service, waiting, form.user.name, form.reason):
            raise HTTPException(409, _not_parked(message_id))
        return self._site.see(request, "/outbox", service=service.name)

    async def _waiting(self, service: Service, message_id: str) -> Waiting | None:
        found = await find_waiting(self._site.reach, service, [message_id])
        return found[0] if found else None


def _gone(message_id: str) -> str:
    return f"The message {message_id} is not in the outbox any more: it was published or skipped."


def _not_parked(message_id: str | None) -> str:
    if message_id is None:
        return "Nothing is parked any more: somebody has retried or skipped it."
    return (
        f"The message {message_id} is not parked any more: somebody has retried or skipped it, or "
        f"it was published."
    )
