"""The log of actions: who did what, when and why."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.site import Site
from eventmesh.operations.action_log import newest_actions

MOST = 200


class Actions:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        log = await newest_actions(self._site.reach, MOST)
        without = [
            service.name for service in self._site.reach.services if not service.needs_database
        ]
        return self._site.page(request, "actions.html", log=log, most=MOST, without=without)
