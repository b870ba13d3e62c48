"""The balance sheet: is a message missing?"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.site import Site
from eventmesh.operations.audit import BalanceSheet, audit, sentence


class Audit:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._one_at_a_time = asyncio.Lock()

    async def page(self, request: Request) -> Response:
        """The page; with `run=1`, the sheet as it is now. All that waits is counted for it, so that
        it is not drawn up by opening the page, and not twice at a time."""
        sheet: BalanceSheet | None = None
        if request.query_params.get("run") == "1":
            async with self._one_at_a_time:
                sheet = await audit(self._site.reach)
        outboxes = (
            {} if sheet is None else {(each.source, each.name): each for each in sheet.outboxes}
        )
        lines = [
            (line, outboxes[line.source, line.name])
            for line in (() if sheet is None else sheet.deliveries)
        ]
        return self._site.page(request, "audit.html", sheet=sheet, lines=lines, sentence=sentence)
