"""The gate before all pages: who is it, and what may a browser do with the answer."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventmesh.dashboard import forgery
from eventmesh.dashboard.access import Authenticate, Denied
from eventmesh.dashboard.forgery import ForgeryGuard
from eventmesh.printable import printable

HEADERS = {
    # No inline script or style, nothing from elsewhere, and no other site may frame a page.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: forms would then be sent with the Origin "null".
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Gate:
    def __init__(self, app: ASGIApp, authenticate: Authenticate, guard: ForgeryGuard) -> None:
        self._app = app
        self._authenticate = authenticate
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            user = await self._authenticate(HTTPConnection(scope))
            refusal = None if user is not None else PlainTextResponse("Log in first.\n", 401)
        except Denied as error:
            user, refusal = None, PlainTextResponse(f"{printable(str(error))}\n", 403)
        if refusal is None and b"%00" in scope["query_string"]:
            # PostgreSQL compares no text with it, and would count as unreachable.
            refusal = PlainTextResponse("An address with %00 is not valid.\n", 400)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        request = Request(scope)
        request.state.user = user
        request.state.cookie = request.cookies.get(forgery.COOKIE) or self._guard.new_cookie()
        await self._app(scope, receive, send_with_headers)
