"""Runs sagas: an ordinary transactional handler of the service that owns them.

The coordinator subscribes to the event that starts a saga and to all replies. For each message it
loads the saga's row, asks `transition` what happens next, and stores the row and the outgoing
commands in the same transaction. Two message attributes connect a reply to its saga: `sagaid`
(`<saga name>/<id>`) and `sagastep` (the step's label). Every command carries them, and the
replying service copies them to its reply.

The id of a saga is the id of the event that started it, so an event that is delivered twice cannot
start two sagas. Two replies that arrive at the same time are resolved by the row's version number:
the slower transaction gets a Conflict and is retried.
"""

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
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.definition import Definition
from eventmesh.saga.transition import SagaRecord, StepRecord, advance, start
from eventmesh.saga.transition import Transition as SagaTransition
from eventmesh.transports.base import Subscription
from eventmesh.wire.envelope import Envelope

SUBSCRIPTION_SUFFIX = ".saga"
"""Keeps the subscription's name apart from a command of the same name as the saga."""

# A saga's commands are published only after the commit that stores its row, so a reply finds the
# row unless a database is failing over or being restored. We wait about ten minutes for that (13
# without jitter). The limit counts all attempts of the reply, so that one which was retried a dozen
# times for a Conflict still has several minutes.
_UNKNOWN_SAGA = Retry(attempts=20, backoff=exponential("500ms", cap="1m"))

# A dead-lettered reply leaves its saga waiting for ever, so we retry for about a day.
_RETRY = Retry(
    attempts=300,
    backoff=exponential("100ms", cap="5m"),
    per_error={UnknownSaga: _UNKNOWN_SAGA},
)

_SAGA_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|sha256:[0-9a-f]{64}")
"""The forms that `Envelope.unique_id` returns. Anything else cannot be the id of a saga."""


class Coordinator:
    """Handles the event that starts a saga, and the replies to its commands."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.saga")

    def extend(self, service: Service) -> None:
        """Add the subscription and the published messages of this saga to the service."""
        definition = self._definition
        if not definition.name.startswith(f"{service.name}."):
            raise UsageError(
                f"The saga {definition.name!r} does not belong to service {service.name!r}: its "
                f"name must begin with {service.name!r} and a dot."
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
        """Apply one message to one saga.

        Raises Conflict, which is retried, if another worker changed the saga at the same time;
        UnknownSaga if there is no saga with this id; Reject if the id cannot be a saga's.
        """
        if transaction is None or not isinstance(message, Event):
            raise UsageError("A saga's coordinator handles events only, and in a transaction.")
        if isinstance(message, self._definition.started_by):
            await self._start(message, envelope, transaction)
        else:
            await self._advance(message, envelope, transaction)

    async def _start(self, event: Event, envelope: Envelope, transaction: Transaction) -> None:
        # The saga takes the event's id, so that a duplicate cannot start a second one.
        await self._apply(
            start(self._definition, event),
            envelope.unique_id,
            row_version=1,
            transaction=transaction,
        )

    async def _advance(self, reply: Event, envelope: Envelope, transaction: Transaction) -> None:
        name, _, saga_id = envelope.attributes.get("sagaid", "").partition("/")
        if name != self._definition.name:
            return  # a reply to another sender's command
        if not _SAGA_ID.fullmatch(saga_id):
            raise Reject(
                f"the attribute sagaid of this {envelope.name} is not the id of a saga of {name}. "
                f"The publisher must copy the attribute sagaid of the command it replies to."
            )
        row = await sagas.load(transaction.session, name, saga_id)
        if row is None:
            raise UnknownSaga(
                f"no saga {saga_id} of {name} exists: either the saga was deleted, or the "
                f"attribute sagaid of this {envelope.name} was not copied from a command of that "
                f"saga. If a restored database brings its row back, replay this dead letter."
            )
        label = envelope.attributes.get("sagastep", "")
        transition = advance(self._definition, self._record(row), label, reply)
        if transition is None:
            self._log.info("saga reply ignored", saga_id=saga_id, step=label, status=row.status)
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
        self._log.debug(
            "saga advanced", saga_id=saga_id, status=record.status, reason=record.reason
        )

    def _record(self, row: SagaRow) -> SagaRecord:
        # A check constraint of the table allows only the statuses of SagaRecord.
        return SagaRecord(
            status=row.status,  # type: ignore[arg-type]
            state=self._definition.state.model_validate_json(
                to_json(row.state), by_name=True, by_alias=False
            ),
            steps={name: StepRecord(**each) for name, each in row.steps.items()},
            reason=row.reason,
        )
