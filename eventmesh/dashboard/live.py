"""Pages that stay up to date: parts of them are sent again after each measurement.

A view renders the live part of a page from a measurement. The page itself shows it at first, and a
stream of server-sent events sends it again. What many browsers show is rendered once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from eventmesh.dashboard.sampler import Sample
from eventmesh.dashboard.site import Site

View = Callable[[Request, Sample], str]

STREAM_TIME = 300.0
"""Seconds after which a stream ends. The browser opens another, which is authenticated again."""

MOST_STREAMS = 100

QUIET_TIME = 15.0
"""Seconds after which something is sent even when there is no news, so that no proxy closes it."""


class Live:
    def __init__(self, site: Site, views: Mapping[str, View]) -> None:
        self._site = site
        self._views = views
        self._open = 0
        self._rendered: dict[tuple[str, str], str] = {}
        self._rendered_of = 0

    def render(self, request: Request, view: str, query: str, sample: Sample) -> str:
        """The live part, from this measurement."""
        if self._rendered_of != sample.number:
            self._rendered, self._rendered_of = {}, sample.number
        # The page of a view depends on nothing else: see the test of two users.
        key = (f"{request.scope.get('root_path', '')}\n{view}", query)
        if key not in self._rendered:
            self._rendered[key] = self._views[view](request, sample)
        return self._rendered[key]

    async def events(self, request: Request) -> Response:
        """The stream of a view."""
        view = request.query_params.get("view", "")
        if view not in self._views:
            raise HTTPException(404, f"There is no view {view!r}.")
        if self._open >= MOST_STREAMS:
            raise HTTPException(503, f"{MOST_STREAMS} pages are open already.")
        first = await self._site.sampler.latest(60.0)
        if first is not None:
            self.render(request, view, request.url.query, first)  # 404 before the stream begins
        stream = self._stream(request, view)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _stream(self, request: Request, view: str) -> AsyncIterator[str]:
        self._open += 1
        try:
            async with asyncio.timeout(STREAM_TIME):
                number = 0
                while True:
                    try:
                        async with asyncio.timeout(QUIET_TIME):
                            sample = await self._site.sampler.after(number)
                    except TimeoutError:
                        yield ": nothing new\n\n"
                        continue
                    number = sample.number
                    shown = self.render(request, view, request.url.query, sample)
                    yield f"id: {number}\ndata: {json.dumps(shown)}\n\n"
        except TimeoutError:
            return
        finally:
            self._open -= 1
