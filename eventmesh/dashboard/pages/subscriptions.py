"""One subscription: what it holds, how fast, how its handler is declared, and whether it is
paused."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.drawing import sparkline
from eventmesh.dashboard.sampler import Sample
from eventmesh.dashboard.site import FIRST_ANSWER, Form, Site
from eventmesh.operations.pausing import Deed, pause_or_resume, why_not_pausable


class Subscriptions:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        name = request.query_params.get("name")
        service, handler = self._site.handler(name)
        sample = await self._site.sampler.latest(FIRST_ANSWER)
        function = handler.function
        return self._site.page(
            request,
            "subscription.html",
            name=name,
            service=service.name,
            handler=handler,
            order=handler.subscription.order,
            function=getattr(function, "__qualname__", None),
            messages=[model.__identity__ for model in handler.models.values()],
            why_not_pausable=why_not_pausable(service, handler),
            view={"view": "subscription", "name": name},
            live=None if sample is None else self.live(request, sample),
        )

    async def pause(self, request: Request, form: Form) -> Response:
        return await self._pause_or_resume(request, form, "pause")

    async def resume(self, request: Request, form: Form) -> Response:
        return await self._pause_or_resume(request, form, "resume")

    async def _pause_or_resume(self, request: Request, form: Form, deed: Deed) -> Response:
        name = form.one("name")
        service, handler = self._site.handler(name)
        reach = self._site.reach
        if not await pause_or_resume(reach, service, handler, deed, form.user.name, form.reason):
            state = "paused already" if deed == "pause" else "not paused"
            raise HTTPException(409, f"{name} is {state}: somebody was faster.")
        return self._site.see(request, "/subscription", name=name)

    def live(self, request: Request, sample: Sample) -> str:
        name = request.query_params.get("name")
        found = [each for each in sample.status.subscriptions if each.name == name]
        if not found:
            raise HTTPException(404, f"There is no subscription {name!r} in this dashboard.")
        past = [
            each
            for kept in self._site.sampler.history
            for each in kept.status.subscriptions
            if each.name == name
        ]
        figures = ("ready", "delayed", "in_flight", "dead", "rate")
        return self._site.render(
            request,
            "subscription_live.html",
            each=found[0],
            taken_at=sample.status.taken_at,
            drawn={
                figure: sparkline([getattr(one, figure) for one in past], figure)
                for figure in figures
            },
        )
