"""The overview: what needs attention, and what waits where."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.drawing import sparkline
from eventmesh.dashboard.sampler import Sample
from eventmesh.dashboard.site import FIRST_ANSWER, Site
from eventmesh.dashboard.wording import alarms, notes, total


class Overview:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        sample = await self._site.sampler.latest(FIRST_ANSWER)
        live = None if sample is None else self.live(request, sample)
        return self._site.page(request, "overview.html", live=live, view={"view": "overview"})

    def live(self, request: Request, sample: Sample) -> str:
        status = sample.status
        history = [each.status for each in self._site.sampler.history]
        series: dict[str, list[float | None]] = {each.name: [] for each in status.subscriptions}
        for past in history:
            found = {each.name: each.ready for each in past.subscriptions}
            for name, values in series.items():
                values.append(found.get(name))
        totals = {
            figure: total(status.subscriptions, figure)
            for figure in ("ready", "delayed", "in_flight", "dead", "rate")
        }
        drawn = {
            figure: sparkline([total(past.subscriptions, figure) for past in history], figure)
            for figure in totals
        }
        return self._site.render(
            request,
            "overview_live.html",
            status=status,
            alarms=alarms(status),
            notes=notes(status),
            totals=totals,
            drawn=drawn,
            sparks={name: sparkline(values, "ready") for name, values in series.items()},
        )
