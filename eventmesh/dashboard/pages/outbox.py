"""The outbox: what waits to be published, and what operators do to parked messages."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.site import FIRST_ANSWER, Form, Site
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.outbox import (
    copy_of,
    find_waiting,
    list_outbox,
    retry_parked,
    skip_parked,
)

MOST = 200


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
        listing = await list_outbox(
            self._site.reach, service, limit=MOST, parked=parked, key=key, name=message
        )
        return self._site.page(
            request,
            "outbox.html",
            service=service.name,
            listing=listing,
            parked=parked,
            key=key,
            message=message,
            total_parked=sum(each.number for each in listing.shares if each.state == "parked"),
        )

    async def message(self, request: Request) -> Response:
        service = self._site.service(request.query_params.get("service"))
        message_id = request.query_params.get("id", "")
        waiting = await find_waiting(self._site.reach, service, message_id)
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
        details = {"all": True} if message_id is None else {"id": message_id}
        action = Action(
            service.name, form.user.name, "retry parked", service.name, form.reason, details
        )
        async with recorded(self._site.reach, action) as recording:
            retried = await retry_parked(
                self._site.reach, service, None if message_id is None else [message_id]
            )
            recording.outcome = f"{len(retried):,} to be published again"
        if not retried:
            raise HTTPException(409, _not_parked(message_id))
        return self._site.see(request, "/outbox", service=service.name)

    async def skip(self, request: Request, form: Form) -> Response:
        """Delete a parked message; the log of actions keeps a copy of it."""
        service = self._site.service(form.one("service"))
        message_id = form.one("id")
        waiting = await find_waiting(self._site.reach, service, message_id)
        if waiting is None or waiting.state != "parked":
            raise HTTPException(409, _not_parked(message_id))
        action = Action(
            service.name,
            form.user.name,
            "skip parked",
            service.name,
            form.reason,
            {"id": message_id, "message": copy_of(waiting)},
        )
        async with recorded(self._site.reach, action) as recording:
            is_gone = await skip_parked(self._site.reach, service, waiting)
            recording.outcome = "skipped" if is_gone else "it was not parked any more"
        if not is_gone:
            raise HTTPException(409, _not_parked(message_id))
        return self._site.see(request, "/outbox", service=service.name)


def _gone(message_id: str) -> str:
    return f"The message {message_id} is not in the outbox any more: it was published or skipped."


def _not_parked(message_id: str | None) -> str:
    if message_id is None:
        return "Nothing is parked any more: somebody has retried or skipped it."
    return (
        f"The message {message_id} is not parked any more: somebody has retried or skipped it, or "
        f"it was published."
    )
