"""Sagas: listed, shown as a graph with their time-line, and what operators decide on them."""

from __future__ import annotations

from typing import get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventmesh.dashboard.saga_picture import saga_picture
from eventmesh.dashboard.site import FIRST_ANSWER, Form, Site
from eventmesh.operations.saga_log import log_line
from eventmesh.operations.sagas import STATUSES, find_saga, list_sagas, operate
from eventmesh.persistence.sagas import SagaRow
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.happening import Operation, OperatorAction
from eventmesh.saga.storage import unread_record_of

MOST = 200

MOST_LINES = 500
"""Lines of a time-line that are shown."""

MEANINGS = {
    "retry": "Send again what it waits for; let a parked one go on.",
    "skip": "Go on as if the step that it waits for had been done, or undone.",
    "undo": "Undo what it has done, in reverse order; possible until its pivot is done.",
    "cancel": "End it as it is: nothing more is sent, and nothing is undone.",
}


class Sagas:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def page(self, request: Request) -> Response:
        query = request.query_params
        if (name := query.get("service")) is None:
            sample = await self._site.sampler.latest(FIRST_ANSWER)
            return self._site.page(request, "saga_services.html", status=sample and sample.status)
        service = self._site.service(name)
        status, step = query.get("status") or None, query.get("step") or None
        key = query.get("key") or None
        if status is not None and status not in STATUSES:
            raise HTTPException(400, f"{status!r} is not a status of a saga.")
        listing = await list_sagas(
            self._site.reach,
            service,
            statuses=() if status is None else (status,),
            step=step,
            key=key,
            limit=MOST,
        )
        return self._site.page(
            request,
            "sagas.html",
            service=service.name,
            listing=listing,
            status=status,
            step=step,
            key=key,
            statuses=STATUSES,
        )

    async def saga(self, request: Request) -> Response:
        service = self._site.service(request.query_params.get("service"))
        saga_id = request.query_params.get("id", "")
        story = await find_saga(self._site.reach, service, saga_id)
        if story is None:
            raise HTTPException(404, f"{service.name} has no saga {saga_id!r}.")
        row, coordinator = story.row, service.sagas.get(story.row.name)
        operations = MEANINGS if coordinator is not None else {"cancel": MEANINGS["cancel"]}
        picture = None
        if isinstance(coordinator, Coordinator):
            picture = saga_picture(coordinator.definition, row)
        return self._site.page(
            request,
            "saga.html",
            service=service.name,
            row=row,
            picture=picture,
            lines=[(at, log_line(entry)) for at, entry in story.log[-MOST_LINES:]],
            more_lines=len(story.log) - MOST_LINES,
            state=self._site.masking.value(row.name, row.state),
            steps=choices(row),
            operations=operations if row.is_open else {},
            is_in_code=coordinator is not None,
        )

    async def operate(self, request: Request, form: Form) -> Response:
        """Do what the operator has decided; 409 where the saga has changed since its page was
        made."""
        service = self._site.service(form.one("service"))
        operation = _operation(form.one("operation"))
        story = await find_saga(self._site.reach, service, form.one("id"))
        if story is None:
            raise HTTPException(404, f"{service.name} has no saga {form.one('id')!r}.")
        row = story.row
        seen = _row_version(form.one("row_version"))
        decision = OperatorAction(operation, form.reason, form.optional("step"), seen)
        await operate(self._site.reach, service, row, decision, form.user.name)
        return self._site.see(request, "/sagas/saga", service=service.name, id=row.id)


def choices(row: SagaRow) -> list[str]:
    """What a saga waits for, or is parked for, of which an operator may choose one: each item of a
    step by itself."""
    record = unread_record_of(row)
    standing = record.parking.unit if record.parking else None
    parts = dict.fromkeys(record.waiting)
    if standing is not None and f"{standing}:undo" not in parts:
        parts[standing] = None
    return list(parts) or [name for name in (row.waiting_for or "").split(",") if name]


def _operation(text: str) -> Operation:
    for each in get_args(Operation):
        if text == each:
            found: Operation = each
            return found
    raise HTTPException(400, f"{text!r} is not something that an operator can do to a saga.")


def _row_version(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise HTTPException(400, f"{text!r} is not a version of a saga's row.") from None
