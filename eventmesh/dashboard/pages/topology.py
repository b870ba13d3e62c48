"""What is declared: the topology of services and messages as a picture, and the schemas."""

from __future__ import annotations

import asyncio
from pathlib import Path

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.drawing import Edge, Node, graph
from eventmesh.dashboard.rendering import link
from eventmesh.dashboard.sampler import Sample
from eventmesh.dashboard.site import FIRST_ANSWER, Site
from eventmesh.operations.describe import MeshDescription, describe
from eventmesh.operations.status import MeshStatus, SubscriptionStatus
from eventmesh.operations.verdicts import ReadingVerdict, reading_verdicts

READ_AGAIN = 30.0
"""Seconds after which the declarations and the frozen schemas are read again."""


LockFiles = tuple[tuple[Path, int, int], ...]
"""The files of frozen schemas, each with its time of change and its size."""


class Topology:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._described: tuple[float, MeshDescription] | None = None
        self._judged: tuple[LockFiles, tuple[ReadingVerdict, ...]] | None = None
        self._judging = asyncio.Lock()

    async def page(self, request: Request) -> Response:
        description = await self._description()
        sample = await self._site.sampler.latest(FIRST_ANSWER)
        live = None if sample is None else self.live(request, sample)
        return self._site.page(
            request,
            "topology.html",
            view={"view": "topology"},
            live=live,
            services=description.services,
        )

    async def schemas(self, request: Request) -> Response:
        description = await self._description()
        return self._site.page(
            request,
            "schemas.html",
            messages=description.messages,
            verdicts=await self._verdicts(),
            folder=str(self._site.reach.settings.schemas),
        )

    def live(self, request: Request, sample: Sample) -> str:
        root = request.scope.get("root_path", "")
        picture = Markup("")
        if self._described is not None:
            picture = topology_picture(self._described[1], sample.status, root)
        return self._site.render(
            request, "topology_live.html", picture=picture, taken_at=sample.status.taken_at
        )

    async def _verdicts(self) -> tuple[ReadingVerdict, ...]:
        """They are proved again only when a frozen schema has changed: code is what it was when
        this process began."""
        reach = self._site.reach
        async with self._judging:
            files = await asyncio.to_thread(_lock_files, reach.settings.schemas)
            if self._judged is None or self._judged[0] != files:
                found = await asyncio.to_thread(
                    reading_verdicts, reach.services, reach.settings, Path.cwd()
                )
                self._judged = files, found
            return self._judged[1]

    async def _description(self) -> MeshDescription:
        reach, now = self._site.reach, self._site.reach.clock.monotonic()
        if self._described is None or now - self._described[0] > READ_AGAIN:
            found = await asyncio.to_thread(
                describe, reach.services, reach.settings, Path.cwd()
            )  # it reads the services' files
            self._described = now, found
        return self._described[1]


def _lock_files(folder: Path) -> LockFiles:
    found = sorted(folder.rglob("*.json"))
    return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in found)


def topology_picture(description: MeshDescription, status: MeshStatus, root: str) -> Markup:
    """Services on the left publish the messages in the middle, which subscriptions on the right
    take. A subscription leads to its page."""
    state = {each.name: each for each in status.subscriptions}
    publishers: dict[str, Node] = {}
    messages: list[Node] = []
    subscriptions: dict[str, Node] = {}
    edges: list[Edge] = []
    for message in description.messages:
        messages.append(Node(f"m {message.name}", (message.name, message.kind)))
        for publication in message.published:
            service = publication.service
            publishers[service] = Node(f"p {service}", (service, "service"))
            edges.append(Edge(f"p {service}", f"m {message.name}"))
        for reading in message.read:
            name = reading.subscription
            found = state.get(name)
            subscriptions[name] = Node(
                f"s {name}",
                (name, _in_short(found)),
                "failed" if found is not None and found.dead else "",
                link(root, "/subscription", name=name),
            )
            is_busy = found is not None and bool(found.rate)
            edges.append(Edge(f"m {message.name}", f"s {name}", "taken" if is_busy else ""))
    ranks = [list(publishers.values()), messages, list(subscriptions.values())]
    return graph(ranks, edges, "Who publishes and who takes each message", downwards=False)


def _in_short(found: SubscriptionStatus | None) -> str:
    if found is None:
        return "not measured"
    parts = [] if found.rate is None else [f"{found.rate:,.1f}/s"]
    parts += [
        f"{value:,} {label}"
        for value, label in ((found.ready, "ready"), (found.dead, "dead"))
        if value
    ]
    return " · ".join(parts) or ("unknown" if found.problem else "idle")
