"""What happened to a message: searched by an id or a key, and shown as a tree of causes."""

from __future__ import annotations

from datetime import datetime

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.drawing import Edge, Node, graph
from eventmesh.dashboard.site import Site
from eventmesh.operations.saga_log import log_line
from eventmesh.operations.why import Sighting, Trace, TracedMessage, trace_id, trace_key

MOST_DRAWN = 150
"""How many messages the picture has."""

MOST_LISTED = 500

MOST_ASKED = 500
"""Characters of an id or a key that is searched."""

_BAD = ("dead", "begun")
_WAITING = ("outbox", "ready", "delayed", "in_flight", "unrouted")


class Search:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        query = request.query_params
        asked = query.get("q", "").strip()[:MOST_ASKED]
        by = "key" if query.get("by") == "key" else "id"
        trace: Trace | None = None
        if asked:
            reach = self._site.reach
            trace = await (trace_key(reach, asked) if by == "key" else trace_id(reach, asked))
        return self._site.page(
            request,
            "search.html",
            asked=asked,
            by=by,
            trace=trace,
            picture=None if trace is None or not trace.messages else why_picture(trace),
            messages=[] if trace is None else trace.messages[:MOST_LISTED],
            more=0 if trace is None else len(trace.messages) - MOST_LISTED,
            stories=_stories(trace),
            in_words=in_words,
        )


def _stories(trace: Trace | None) -> list[tuple[str, str, str, list[tuple[datetime, str]]]]:
    """The sagas: service, name, id, and time-line."""
    return [
        (
            each.row.name.partition(".")[0],
            each.row.name,
            each.row.id,
            [(at, log_line(entry)) for at, entry in each.log],
        )
        for each in ([] if trace is None else trace.sagas)
    ]


def why_picture(trace: Trace) -> Markup:
    """Messages from the left to the right, each with an arrow from what caused it."""
    shown = trace.messages[:MOST_DRAWN]
    ranks: list[list[Node]] = [[] for _ in range(1 + max(each.depth for each in shown))]
    for each in shown:
        ranks[each.depth].append(
            Node(each.id, (each.name or "?", _outcome(each), each.id), _kind(each))
        )
    known = {each.id for each in shown}
    edges = [
        Edge(each.causation_id, each.id, "taken")
        for each in shown
        if each.causation_id in known and each.causation_id is not None
    ]
    return graph(ranks, edges, f"What came of {trace.asked}", downwards=False)


def _kind(message: TracedMessage) -> str:
    seen = {each.what for each in message.sightings}
    if seen & set(_BAD):
        return "failed"
    if seen & set(_WAITING):
        return "sent"
    return "done" if "handled" in seen else ""


def _outcome(message: TracedMessage) -> str:
    places = [f"{_label(each)} {each.place}".strip() for each in message.sightings]
    return "; ".join(places) or "only its effects are known"


def _label(sighting: Sighting) -> str:
    match sighting.what:
        case "dead":
            return "dead letter in"
        case "handled":
            return "handled by"
        case "begun":
            return "begun by"
        case "outbox":
            return f"{sighting.state or 'waits'} in the outbox of"
        case "unrouted":
            return "not wanted by anybody"
        case "unknown":
            return "unknown in"
        case _:
            return f"{sighting.what.replace('_', ' ')} in"


def in_words(sighting: Sighting) -> str:
    """Where a message was seen, in one line."""
    words = f"{_label(sighting)} {sighting.place}".strip()
    if sighting.attempt is not None and sighting.attempt > 1:
        words += f", attempt {sighting.attempt}"
    if sighting.took is not None:
        words += f", took {sighting.took:,.2f} s"
    return f"{words}: {sighting.detail}" if sighting.detail else words
