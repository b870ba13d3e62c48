"""What all pages share: the mesh that they show, and how a page and a form are made.

A page is a GET that changes nothing. An action is a POST; every one passes through `Site.action`,
which asks for the role, the token against forgery and a reason, so that no action can forget one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from eventmesh.dashboard import forgery
from eventmesh.dashboard.access import User
from eventmesh.dashboard.forgery import ForgeryGuard
from eventmesh.dashboard.masking import Masking
from eventmesh.dashboard.rendering import link
from eventmesh.dashboard.sampler import Sampler
from eventmesh.operations.action_log import MOST_REASON
from eventmesh.operations.reach import Reach
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service

FORM_OVERHEAD = 64 * 1024
"""Bytes of a form beside the data of a message."""

FIRST_ANSWER = 2.0
"""Seconds for which a page waits for the first measurement of the process."""

NAVIGATION = (
    ("/", "Overview"),
    ("/dead-letters", "Dead letters"),
    ("/outbox", "Outbox"),
    ("/sagas", "Sagas"),
    ("/topology", "Topology"),
    ("/schemas", "Schemas"),
    ("/search", "Search"),
    ("/audit", "Audit"),
    ("/actions", "Actions"),
)


@dataclass(frozen=True, slots=True)
class Form:
    """What an operator has sent, checked: who, why, and the fields."""

    user: User
    reason: str
    fields: Mapping[str, Sequence[str]]

    def one(self, name: str) -> str:
        """The field's value; 400 if it was not sent once."""
        values = self.fields.get(name, ())
        if len(values) != 1:
            raise HTTPException(400, f"The form has no field {name!r}.")
        return values[0]

    def optional(self, name: str) -> str | None:
        """The field's value; None if it was not sent, or is empty."""
        return next(iter(self.fields.get(name, ())), "") or None


Page = Callable[[Request], Awaitable[Response]]
Perform = Callable[[Request, Form], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Site:
    reach: Reach
    sampler: Sampler
    templates: Environment
    guard: ForgeryGuard
    masking: Masking

    @property
    def services(self) -> Mapping[str, Service]:
        return {service.name: service for service in self.reach.services}

    def service(self, name: str | None) -> Service:
        """The service of this name; 404."""
        found = self.services.get(name or "")
        if found is None:
            raise HTTPException(404, f"There is no service {name!r} in this dashboard.")
        return found

    def handler(self, subscription: str | None) -> tuple[Service, Handler]:
        """The handler of a subscription, with its service; 404."""
        for service in self.reach.services:
            for handler in service.handlers.values():
                if handler.subscription.name == subscription:
                    return service, handler
        raise HTTPException(404, f"There is no subscription {subscription!r} in this dashboard.")

    def render(self, request: Request, template: str, **context: Any) -> str:
        root = request.scope.get("root_path", "")
        user: User = request.state.user
        shared = {
            "root": root,
            "path": request.url.path.removeprefix(root) or "/",
            "user": user,
            "navigation": NAVIGATION,
            "token": self.guard.token(request.state.cookie, user.name),
            "most_reason": MOST_REASON,
            "masked": self.masking.line,
        }
        return self.templates.get_template(template).render(**shared, **context)

    def page(
        self, request: Request, template: str, status_code: int = 200, **context: Any
    ) -> Response:
        """A page, with the cookie that its forms need."""
        response = HTMLResponse(self.render(request, template, **context), status_code)
        if request.cookies.get(forgery.COOKIE) != request.state.cookie:
            response.set_cookie(
                forgery.COOKIE,
                request.state.cookie,
                path=request.scope.get("root_path", "") or "/",
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return response

    def see(self, request: Request, page: str, **query: Any) -> Response:
        """Go on to another page, after an action."""
        return RedirectResponse(link(request.scope.get("root_path", ""), page, **query), 303)

    def action(self, perform: Perform) -> Page:
        """The endpoint of an action."""

        async def endpoint(request: Request) -> Response:
            user: User = request.state.user
            if not user.may_act:
                raise HTTPException(403, f"{user.name} has the role viewer, and may not do this.")
            fields = await self._fields(request)
            token = next(iter(fields.get(forgery.FIELD, ())), "")
            cookie = request.cookies.get(forgery.COOKIE)
            refusal = self.guard.why_refused(request.headers, cookie, user.name, token)
            if refusal is not None:
                raise HTTPException(403, refusal)
            reason = next(iter(fields.get("reason", ())), "").strip()
            if not reason:
                raise HTTPException(400, "Say why, for whoever reads the log of actions.")
            if len(reason) > MOST_REASON:
                raise HTTPException(400, f"The reason has more than {MOST_REASON:,} characters.")
            return await perform(request, Form(user, reason, fields))

        return endpoint

    async def _fields(self, request: Request) -> Mapping[str, Sequence[str]]:
        """The fields of a form; 413 if it is too large."""
        # Each byte of the data may have become three by percent-encoding.
        largest = 3 * self.reach.settings.max_message_bytes + FORM_OVERHEAD
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > largest:
                raise HTTPException(413, f"The form has more than {largest:,} bytes.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/x-www-form-urlencoded":
            raise HTTPException(415, "A form is sent as application/x-www-form-urlencoded.")
        try:
            fields = parse_qs(
                body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=2_000
            )
        except ValueError:
            raise HTTPException(400, "The form cannot be read.") from None
        if any("\0" in value for values in fields.values() for value in values):
            raise HTTPException(400, "A field of the form holds a NUL, which is not text.")
        return fields
