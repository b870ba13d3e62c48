"""Runs a saga: an ordinary handler, whose state row and commands commit in one transaction."""

from __future__ import annotations

import re
from dataclasses import asdict

import structlog
from pydantic_core import to_json

from eventmesh.contracts.message import Event, Message
from eventmesh.errors import Reject, UnknownSaga, UsageError
from eventmesh.persistence import sagas
from eventmesh.persistence.sagas import SagaRow
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.retry import Retry, exponential
from eventmesh.runtime.declaring.service import Service
from eventmesh.saga.definition import Definition
from eventmesh.saga.transition import SagaRecord, StepRecord, advance, start
from eventmesh.saga.transition import Transition as SagaTransition
from eventmesh.transports.base import Subscription
from eventmesh.wire.envelope import Envelope

SUBSCRIPTION_SUFFIX = ".saga"
"""So that a saga may be called like the command with which its story begins."""

# Commands leave with the commit that stores their saga, so a reply finds its row, unless a database
# is just failing over or being restored. We wait about ten minutes for that: 13 without jitter. The
# bound counts all attempts of the reply, so it leaves several minutes to one that was retried for a
# Conflict a dozen times before.
_UNKNOWN_SAGA = Retry(attempts=20, backoff=exponential("500ms", cap="1m"))

# What a saga waits for must not be given up while the trouble may pass: about a day.
_RETRY = Retry(
    attempts=300,
    backoff=exponential("100ms", cap="5m"),
    per_error={UnknownSaga: _UNKNOWN_SAGA},
)

_SAGA_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|sha256:[0-9a-f]{64}")
"""What `Envelope.unique_id` makes: anything else names no saga, and need not be looked for."""


class Coordinator:
    """Handles the event that starts a saga, and the replies to its commands."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.saga")

    def extend(self, service: Service) -> None:
        """Subscribe to all it handles, and declare all it publishes."""
        definition = self._definition
        if not definition.name.startswith(f"{service.name}."):
            raise UsageError(
                f"The saga {definition.name!r} does not belong to service {service.name!r}: name "
                f"it {service.name}.…"
            )
        models = {
            model.__identity__.name: model
            for model in (definition.started_by, *definition.replies())
        }
        for model in definition.publishes:
            service.registry.add_published(model)
        service.add_handler(
            Handler(
                subscription=Subscription(definition.name + SUBSCRIPTION_SUFFIX, tuple(models)),
                models=models,
                call=self.handle,
                retry=_RETRY,
                transactional=True,
                sources=definition.sources,
            )
        )

    async def handle(
        self, message: Message, envelope: Envelope, transaction: Transaction | None
    ) -> None:
        """Move one saga on by one message. Conflict, to be tried again, when another worker did
        so at the same time; UnknownSaga when there is none of this id; Reject when there cannot
        be one."""
        if transaction is None or not isinstance(message, Event):
            raise UsageError("A saga's coordinator runs in a transaction, and on events only.")
        if isinstance(message, self._definition.started_by):
            await self._start(message, envelope, transaction)
        else:
            await self._advance(message, envelope, transaction)

    async def _start(self, event: Event, envelope: Envelope, transaction: Transaction) -> None:
        # The event's id is the saga's: the same event can never start two.
        await self._apply(
            start(self._definition, event),
            envelope.unique_id,
            row_version=1,
            transaction=transaction,
        )

    async def _advance(self, reply: Event, envelope: Envelope, transaction: Transaction) -> None:
        name, _, saga_id = envelope.attributes.get("sagaid", "").partition("/")
        if name != self._definition.name:
            return  # the same event, but in answer to somebody else's command
        if not _SAGA_ID.fullmatch(saga_id):
            raise Reject(
                f"the attribute sagaid of this {envelope.name} is not one that EventMesh made: it "
                f"names no saga of {name}. Whoever published it must hand on the sagaid of the "
                f"command that it answers."
            )
        row = await sagas.load(transaction.session, name, saga_id)
        if row is None:
            raise UnknownSaga(
                f"no saga {saga_id} of {name} exists: either the attribute sagaid of this "
                f"{envelope.name} was not copied from a command of that saga, or the saga was "
                f"deleted. If its row comes back, as by a restored database, replay this dead "
                f"letter."
            )
        label = envelope.attributes.get("sagastep", "")
        transition = advance(self._definition, self._record(row), label, reply)
        if transition is None:
            self._log.info("reply changes nothing", saga_id=saga_id, step=label, status=row.status)
            return
        await self._apply(transition, saga_id, row.row_version + 1, transaction)

    async def _apply(
        self,
        transition: SagaTransition,
        saga_id: str,
        row_version: int,
        transaction: Transaction,
    ) -> None:
        record, name = transition.record, self._definition.name
        row = SagaRow(
            id=saga_id,
            name=name,
            version=self._definition.version,
            status=record.status,
            state=record.state.model_dump(mode="json", by_alias=False),
            steps={step: asdict(each) for step, each in record.steps.items()},
            reason=record.reason,
            row_version=row_version,
        )
        await sagas.store(transaction.session, row, ended=record.ended)
        for sending in transition.sendings:
            labels = {"sagaid": f"{name}/{saga_id}", "sagastep": sending.label}
            transaction.add(sending.command, extensions=labels)
        if transition.ending is not None:
            transaction.add(transition.ending)
        self._log.debug("saga moved", saga_id=saga_id, status=record.status, reason=record.reason)

    def _record(self, row: SagaRow) -> SagaRecord:
        # The check constraint on the row admits no other status.
        return SagaRecord(
            status=row.status,  # type: ignore[arg-type]
            state=self._definition.state.model_validate_json(
                to_json(row.state), by_name=True, by_alias=False
            ),
            steps={name: StepRecord(**each) for name, each in row.steps.items()},
            reason=row.reason,
        )
