"""Dead letters: listed, grouped, shown, replayed, edited and discarded.

`/dead-letters` reads the dead letters of a subscription and goes on to the list as it was read.
`/dead-letters/review` freezes a selection and tells what would happen to it, which is the dry run;
its form begins the action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.jobs import Job, Jobs
from eventmesh.dashboard.sampler import Sample
from eventmesh.dashboard.selections import Group, Selection, Shelf, groups, select
from eventmesh.dashboard.site import FIRST_ANSWER, Form, Site
from eventmesh.errors import EventMeshError
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.dead_letters import (
    LetterListing,
    LetterSummary,
    after_discard,
    after_replay,
    effect_on,
    find_letter,
    list_letters,
    replay_edited,
)
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.concerned import concerned_saga
from eventmesh.transports.base import DeadLetter

PER_PAGE = 100

MOST_GROUPS = 50
"""How many groups a list shows."""

MOST_SAGAS = 10
"""How many sagas a dry run names."""

FIRST_RESULT = 1.0
"""Seconds for which the page of a job waits for its end."""

_GONE = (
    "This list is not kept any more, because newer ones were read or the dashboard was restarted. "
    "Read the dead letters again."
)


class DeadLetters:
    def __init__(self, site: Site, jobs: Jobs) -> None:
        self._site = site
        self._jobs = jobs
        self._listings: Shelf[LetterListing] = Shelf()
        self._selections: Shelf[Selection] = Shelf()

    async def page(self, request: Request) -> Response:
        """The list as it was read; reads it if it was not; without a subscription, all of them."""
        query = request.query_params
        if (name := query.get("subscription")) is None:
            sample = await self._site.sampler.latest(FIRST_ANSWER)
            return self._site.page(
                request, "dead_letter_subscriptions.html", status=sample and sample.status
            )
        service, handler = self._site.handler(name)
        if "list" not in query:
            listing = await list_letters(self._site.reach, service, handler)
            return self._site.see(
                request, "/dead-letters", subscription=name, list=self._listings.put(listing)
            )
        listing = self._listing(query.get("list"), name)
        grouped = groups(listing.letters)
        place, group = _group(query.get("group"), grouped)
        chosen = select(listing, group)
        number = _page_number(query.get("page"), len(chosen))
        return self._site.page(
            request,
            "dead_letters.html",
            listing=listing,
            list_id=query["list"],
            groups=grouped[:MOST_GROUPS],
            more_groups=len(grouped) - MOST_GROUPS,
            group=place,
            chosen=len(chosen),
            letters=chosen[(number - 1) * PER_PAGE : number * PER_PAGE],
            number=number,
            pages=max(1, -(-len(chosen) // PER_PAGE)),
        )

    async def letter(self, request: Request) -> Response:
        """One dead letter, with its data and why it is one."""
        service, handler = self._site.handler(request.query_params.get("subscription"))
        letter = await self._letter(handler, request.query_params.get("id"))
        return self._letter_page(request, service, handler, letter)

    def _letter_page(
        self,
        request: Request,
        service: Service,
        handler: Handler,
        letter: DeadLetter,
        *,
        edited: str | None = None,
        problem: str | None = None,
    ) -> Response:
        envelope = letter.envelope
        masking = self._site.masking
        data = masking.payload(envelope.name, envelope.data)
        saga = concerned_saga(envelope, handler, service)
        return self._site.page(
            request,
            "dead_letter.html",
            200 if problem is None else 422,
            service=service.name,
            letter=letter,
            attributes=sorted(envelope.attributes.items()),
            data=data,
            error=masking.text(envelope.name, letter.error),
            saga=None if saga is None else (saga, effect_on(saga)),
            can_edit=not (data.is_masked or data.is_cut) and envelope.name in handler.models,
            edited=data.text if edited is None else edited,
            problem=problem,
        )

    async def review(self, request: Request) -> Response:
        """The dry run: freezes a selection, and tells what is still there and what would happen."""
        query = request.query_params
        service, handler = self._site.handler(query.get("subscription"))
        deed = _deed(query.get("deed"))
        listing = self._listing(query.get("list"), handler.subscription.name)
        ids = query.getlist("id")
        if query.get("only") == "checked" and not ids:
            raise HTTPException(400, "Nothing was checked: go back and check what you mean.")
        _, group = _group(query.get("group"), groups(listing.letters))
        letters = select(listing, group, ids)
        return await self._review(request, service, handler, deed, letters)

    async def review_one(self, request: Request) -> Response:
        """The dry run for one dead letter, which need not be on a list."""
        query = request.query_params
        service, handler = self._site.handler(query.get("subscription"))
        listing = await list_letters(self._site.reach, service, handler)
        letters = select(listing, None, [query.get("id", "")])
        return await self._review(request, service, handler, _deed(query.get("deed")), letters)

    async def _review(
        self,
        request: Request,
        service: Service,
        handler: Handler,
        deed: Literal["replay", "discard"],
        letters: tuple[LetterSummary, ...],
    ) -> Response:
        if not letters:
            raise HTTPException(404, "None of these dead letters is there.")
        now = await list_letters(self._site.reach, service, handler)
        there = {letter.id for letter in now.letters}
        selection = Selection(service.name, handler.subscription.name, letters)
        in_words: Callable[..., str] = after_replay if deed == "replay" else after_discard
        sagas = [in_words(each.saga) for each in letters if each.saga is not None]
        return self._site.page(
            request,
            "dead_letters_review.html",
            deed=deed,
            selection=selection,
            selection_id=self._selections.put(selection),
            there=sum(each.id in there for each in letters),
            groups=groups(letters)[:MOST_GROUPS],
            sagas=list(Counter(sagas).items())[:MOST_SAGAS],
            more_sagas=len(set(sagas)) - MOST_SAGAS,
            not_listed=now.is_cut,
        )

    async def act(self, request: Request, form: Form) -> Response:
        """Begin to replay or discard a frozen selection."""
        selection = self._selections.get(form.one("selection"))
        if selection is None:
            raise HTTPException(409, _GONE)
        _, handler = self._site.handler(selection.subscription)
        job = Job(form.user.name, _deed(form.one("deed")), form.reason, selection)
        return self._site.see(request, "/job", id=self._jobs.begin(job, handler))

    async def edit(self, request: Request, form: Form) -> Response:
        """Replay one dead letter with other data, if that is valid."""
        service, handler = self._site.handler(form.one("subscription"))
        letter = await self._letter(handler, form.one("id"))
        shown = self._site.masking.payload(letter.envelope.name, letter.envelope.data)
        if shown.is_masked:
            raise HTTPException(403, "Parts of this message are masked, so it cannot be edited.")
        text = form.one("data")
        details = {"id": letter.id, "bytes": len(text.encode(errors="replace"))}
        action = Action(
            service.name,
            form.user.name,
            "edit and replay dead letter",
            handler.subscription.name,
            form.reason,
            details,
        )
        try:
            async with recorded(self._site.reach, action) as recording:
                data = text.encode()
                if not await replay_edited(self._site.reach, service, handler, letter, data):
                    recording.outcome = "it was not there any more"
                    raise HTTPException(409, _taken(letter.id))
                recording.outcome = "replayed with other data"
        except UnicodeEncodeError:
            problem = "The data holds characters that UTF-8 does not have."
        except EventMeshError as error:
            problem = str(error)
        else:
            return self._site.see(request, "/dead-letters", subscription=handler.subscription.name)
        return self._letter_page(request, service, handler, letter, edited=text, problem=problem)

    async def job(self, request: Request) -> Response:
        """How far a bulk action is."""
        job = self._jobs.find(request.query_params.get("id"))
        if job is None:
            raise HTTPException(404, "This action is not known any more: see the log of actions.")
        await self._jobs.wait(job, FIRST_RESULT, lambda job: job.has_ended)
        return self._site.page(
            request,
            "job.html",
            job=job,
            live=self._rendered(request, job),
            view={"view": "job", "id": request.query_params["id"]},
        )

    def live_job(self, request: Request, _: Sample) -> str:
        job = self._jobs.find(request.query_params.get("id"))
        if job is None:
            raise HTTPException(404, "This action is not known any more: see the log of actions.")
        return self._rendered(request, job)

    def _rendered(self, request: Request, job: Job) -> str:
        return self._site.render(request, "job_live.html", job=job)

    def _listing(self, list_id: str | None, subscription: str) -> LetterListing:
        listing = self._listings.get(list_id)
        if listing is None or listing.subscription != subscription:
            raise HTTPException(409, _GONE)
        return listing

    async def _letter(self, handler: Handler, letter_id: str | None) -> DeadLetter:
        letter = await find_letter(self._site.reach, handler, letter_id or "")
        if letter is None:
            raise HTTPException(404, _taken(letter_id or ""))
        return letter


def _taken(letter_id: str) -> str:
    return (
        f"The dead letter {letter_id} is not there any more: somebody has replayed or discarded "
        f"it. See the log of actions."
    )


def _group(text: str | None, grouped: Sequence[Group]) -> tuple[int | None, Group | None]:
    """The group with this number in the list; 404."""
    if text is None:
        return None, None
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) < len(grouped)):
        raise HTTPException(404, f"The list has no group {text!r}.")
    return int(text), grouped[int(text)]


def _deed(text: str | None) -> Literal["replay", "discard"]:
    match text:
        case "replay" | "discard":
            return text
        case _:
            raise HTTPException(400, f"{text!r} is not an action on dead letters.")


def _page_number(text: str | None, number: int) -> int:
    """The page that was asked for, within those that there are."""
    last = max(1, -(-number // PER_PAGE))
    asked = int(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else 1
    return min(max(asked, 1), last)
