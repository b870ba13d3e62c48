"""Runs sagas: a batch handler of the service that owns them.

The coordinator subscribes to what starts a saga, to all answers, and to the saga's own signals. For
a group of messages it locks the rows of all their sagas in one statement, lets `transition` decide
for one message after another, and stores the rows, their log, the commands and the time-outs in the
same transaction. Workers with answers for one saga wait for each other; nobody has to try again.

An answer finds its saga by two message attributes, `sagaid` (`<saga>/<id>`) and `sagastep` (the
label of the command). Every command carries them, and whoever handles it copies them to what it
publishes, without knowing of sagas. An event without them finds its saga by its business key, if a
step says how (`correlate=`).

The id of a saga is the id of the message that started it, so one that is delivered twice cannot
start two sagas. A time-out is a delayed message of the saga to itself in the outbox, which is
deleted there when its step is answered. So is a command that a `retry=` sends again after a delay,
when an operator skips its step or cancels the saga, or an earlier attempt is answered after all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from eventmesh.contracts.message import Event, Message
from eventmesh.errors import Conflict, Drift, Reject, UnknownSaga, UsageError
from eventmesh.persistence import sagas
from eventmesh.persistence.database import AsyncSession, Database
from eventmesh.persistence.sagas import LogEntry, SagaLot, SagaRow
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.retry import Retry, exponential, summarize
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.cancelling import cancel_saga
from eventmesh.saga.deciding import lock_decided
from eventmesh.saga.definition import Definition
from eventmesh.saga.draft import Transition
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    Happening,
    OperatorAction,
    UnexpectedAnswer,
    UnknownStep,
    WaitedTooLong,
    hold_as,
)
from eventmesh.saga.record import Label, SagaRecord, parse_label
from eventmesh.saga.shape_locks import refuse_drift
from eventmesh.saga.signals import SagaSignal, delayed_id, signal_of, timer_id
from eventmesh.saga.storage import (
    NewerVersion,
    UnreadableState,
    parked_row,
    record_of,
    row_of,
)
from eventmesh.saga.transition import advance, ask_again, begin, park, take_first_steps
from eventmesh.saga.unmatched import Unmatched
from eventmesh.storable import storable
from eventmesh.transports.base import Subscription
from eventmesh.wire.envelope import UNIQUE_ID, Envelope

SUBSCRIPTION_SUFFIX = ".saga"
"""Keeps the subscription's name apart from a command of the same name as the saga."""

# A saga's commands are published only after the commit that stores its row, so a reply finds the
# row unless a database is failing over or being restored. We wait about ten minutes for that (13
# without jitter). A step or version that this code does not know may be known to another worker,
# while new code is being deployed.
_NOT_YET = Retry(attempts=20, backoff=exponential("500ms", cap="1m"))

# A dead-lettered reply leaves its saga waiting until its time-out, so we retry for about a day.
_RETRY = Retry(
    attempts=300,
    backoff=exponential("100ms", cap="5m"),
    per_error={UnknownSaga: _NOT_YET, UnknownStep: _NOT_YET, NewerVersion: _NOT_YET},
    give_up_on=(UnexpectedAnswer,),
)

_NEVER = datetime.max.replace(tzinfo=UTC)

_CLAIMED_AT_ONCE = 500
"""Sagas that get their key in one transaction at the start of a worker."""

_CLAIMS = 5
"""Tries of that, where other workers start sagas of the same keys meanwhile."""

_WARNED = frozenset({"parked", "late: parked"})
_NOTED = frozenset(
    {
        "not an answer",
        "too late",
        "stale",
        "late, and failed",
        "late: undone",
        "late: to be undone",
        "to be undone when answered",
    }
)
"""Rules whose application is worth a line at warning, and at info; all others are at debug."""


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A message, and which saga it is for: by id, by key, or none (a new one is to be started)."""

    message: Message
    envelope: Envelope
    saga_id: str | None = None
    key: str | None = None
    happening: Happening | None = None
    beginning: SagaRecord | None = None
    """Of a saga that is to be started. If it is a child saga, `key` is its own: its parent may ask
    for it again while it is open."""


@dataclass(slots=True)
class _Work:
    """The sagas that a group works on, by id, as they are so far."""

    rows: dict[str, SagaRow]
    records: dict[str, SagaRecord] = field(default_factory=dict)
    changed: dict[str, SagaRow] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    delayed: set[str] = field(default_factory=set)
    """The ids of delayed commands that this group sends."""
    withdrawn: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)
    """Which had ended, and are open again."""

    def id_of(self, key: str) -> str | None:
        """The open saga with this key, or the one that was started last where none is open."""
        of_key = [row for row in self.rows.values() if row.key == key]
        if not of_key:
            return None
        # One that this group has started has no time yet.
        return max(of_key, key=lambda row: (row.is_open, row.started_at or _NEVER)).id


class Coordinator:
    """Handles what starts a saga, the answers to its commands, and its signals."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._signal = signal_of(definition.name)
        self._unmatched = Unmatched()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger(
            "eventmesh.saga", saga=definition.name
        )

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
            for model in (*definition.starts, *definition.replies(), self._signal)
        }
        for model in (*definition.publishes, self._signal):
            service.registry.add_published(model)
        service.add_handler(
            Handler(
                subscription=Subscription(definition.name + SUBSCRIPTION_SUFFIX, tuple(models)),
                models=models,
                call=self.handle,
                call_batch=self.handle_batch,
                is_paced=False,
                retry=_RETRY,
                transactional=True,
                sources=definition.sources,
            )
        )
        service.sagas[definition.name] = self

    @property
    def definition(self) -> Definition:
        """The saga that it coordinates."""
        return self._definition

    def unmatched_events(self) -> Mapping[str, int]:
        """How many events matched no saga, by message name, since this process began."""
        return self._unmatched.counts

    def refuse_drift(self, schemas: Path) -> None:
        """Drift where the saga differs from what is frozen of its version in this folder."""
        refuse_drift(self._definition, schemas)

    def refuse_unknown_steps(self, lots: Sequence[SagaLot]) -> None:
        """Drift where open sagas have a newer version, or wait for a step that this code does not
        have: their answers would become dead letters."""
        definition = self._definition
        newer = [lot for lot in lots if lot.version > definition.version]
        if newer:
            raise Drift(
                f"{sum(lot.count for lot in newer):,} open sagas {definition.name} have version "
                f"{max(lot.version for lot in newer)}, and this code has version "
                f"{definition.version}: deploy the newer code again, or wait until they have ended."
            )
        stranded: Counter[str] = Counter()
        for lot in lots:
            for waiting in lot.waiting_for.split(","):
                label = parse_label(waiting)
                if label is not None and label.step not in definition.steps:
                    stranded[label.step] += lot.count
        if stranded:
            steps = " and ".join(
                f"{count:,} in the step {step}" for step, count in stranded.items()
            )
            service = definition.name.partition(".")[0]
            raise Drift(
                f"Open sagas {definition.name} stand where this code has no step: {steps}. Keep "
                f"the step under its name until they have ended, or settle each by hand and end "
                f"it: `eventmesh saga list {service} --step {next(iter(stranded))}`, then "
                f"`eventmesh saga cancel {service} ID --reason …`."
            )

    async def handle(
        self, message: Message, envelope: Envelope, transaction: Transaction | None
    ) -> None:
        """Apply one message to its saga; raises as `handle_batch`."""
        await self.handle_batch((message,), (envelope,), transaction)

    async def handle_batch(
        self,
        messages: Sequence[Message],
        envelopes: Sequence[Envelope],
        transaction: Transaction | None,
    ) -> None:
        """Apply messages to their sagas, in order.

        Raises UnknownSaga, UnknownStep or NewerVersion, upon which a message is retried for a
        while; Reject or UnexpectedAnswer for one that can never be an answer.
        """
        if transaction is None:
            raise UsageError("A saga's coordinator works in a transaction.")
        incoming = [
            self._incoming(message, envelope)
            for message, envelope in zip(messages, envelopes, strict=True)
        ]
        ids = {
            each.saga_id or each.envelope.unique_id
            for each in incoming
            if each.key is None or each.beginning is not None
        }
        keys = {each.key for each in incoming if each.key is not None}
        rows = await sagas.lock(transaction.session, self._definition.name, ids, keys)
        work = _Work({row.id: row for row in rows})
        for each in incoming:
            self._apply(each, work, transaction)
        await self._store(work, transaction)

    async def operate(
        self, saga_id: str, action: OperatorAction, who: str, transaction: Transaction
    ) -> Transition:
        """Do what an operator wants, in this transaction. UnknownSaga; Conflict where the saga has
        changed since the operator saw it; UsageError where it is not possible."""
        definition = self._definition
        if action.operation == "cancel":
            return await cancel_saga(definition.name, saga_id, action, who, transaction)
        row = await lock_decided(definition.name, saga_id, action, transaction)
        work = _Work({saga_id: row})
        try:
            record = record_of(definition, row)
        except NewerVersion as error:
            raise UsageError(f"{error}: deploy the newer code again.") from error
        except UnreadableState as error:
            raise UsageError(
                f"the saga cannot go on, because {error}. Deploy code that reads such a state (a "
                f"new version= with @….migrate(from_version={row.version}), or a field with a "
                f"default), and retry; or cancel the saga."
            ) from error
        now = transaction.now()
        transition = advance(definition, record, action, now=now.timestamp())
        entry = {"operator": who, "why": action.reason}
        transition = self._take(record, transition, saga_id, work, transaction, None, entry)
        await self._store(work, transaction)
        return transition

    def _incoming(self, message: Message, envelope: Envelope) -> _Incoming:
        """Which saga a message is for, and what it means to it."""
        definition = self._definition
        if type(message) in definition.starts:
            return self._incoming_start(message, envelope)
        if isinstance(message, SagaSignal):
            if not UNIQUE_ID.fullmatch(message.saga_id):
                raise Reject(f"{message.saga_id!r} is not the id of a saga of {definition.name}.")
            happening: Happening = (
                WaitedTooLong(message.label)
                if message.what == "timed_out"
                else CommandDeadLettered(message.label, message.reason)
            )
            return _Incoming(message, envelope, saga_id=message.saga_id, happening=happening)
        if not isinstance(message, Event):
            raise UsageError(f"The saga {definition.name} cannot be answered by a command.")
        name, _, saga_id = envelope.attributes.get("sagaid", "").partition("/")
        if name == definition.name:
            if not UNIQUE_ID.fullmatch(saga_id):
                raise Reject(
                    f"the attribute sagaid of this {envelope.name} is not the id of a saga of "
                    f"{name}. The publisher must copy the attribute sagaid of the command it "
                    f"replies to."
                )
            label = envelope.attributes.get("sagastep", "")
            return _Incoming(message, envelope, saga_id, happening=Answered(message, label))
        for step in definition.correlated(type(message)):
            assert step.correlate is not None  # noqa: S101  # see `Definition.correlated`
            try:
                key = step.correlate(message)
            except Exception as error:
                raise RuntimeError(
                    f"correlate= of the step {step.name} failed for this {envelope.name}: "
                    f"{summarize(error)}"
                ) from error
            if key is not None:
                key = storable(str(key))  # a foreign event's may hold a NUL
                return _Incoming(message, envelope, key=key, happening=Answered(message, None))
        return _Incoming(message, envelope, happening=Answered(message, None))

    def _incoming_start(self, message: Message, envelope: Envelope) -> _Incoming:
        attributes = envelope.attributes
        parent = None
        if attributes.get("sagaid") and attributes.get("sagastep"):
            parent = attributes["sagaid"], attributes["sagastep"]
        record = begin(
            self._definition, message, parent=parent, correlation=envelope.correlation_id
        )
        key = None if parent is None else self._key_of(record)
        return _Incoming(message, envelope, key=key, beginning=record)

    def _apply(self, each: _Incoming, work: _Work, transaction: Transaction) -> None:
        """Apply one message to its saga, as that stands after the messages before it."""
        definition, envelope = self._definition, each.envelope
        if each.beginning is not None:
            self._start(each, each.beginning, work, transaction)
            return
        assert each.happening is not None  # noqa: S101  # whatever starts no saga
        saga_id = each.saga_id
        if saga_id is None:
            saga_id = None if each.key is None else work.id_of(each.key)
            if saga_id is None:
                has_label = bool(envelope.attributes.get("sagaid"))  # another saga's, or sender's
                if each.key is not None or not has_label:
                    self._note_unmatched(each)
                return
        row = work.rows.get(saga_id)
        is_final = row is not None and row.status in ("completed", "cancelled")
        if is_final and each.saga_id is None:
            self._note_unmatched(each)  # whatever comes changes nothing
            return
        if row is None:
            if isinstance(each.message, SagaSignal) and each.message.what == "timed_out":
                self._log.info("saga timed out after its end", saga_id=saga_id)
                return  # purged, so it had ended
            raise UnknownSaga(
                f"no saga {saga_id} of {definition.name} exists: either the saga was deleted, or "
                f"the attribute sagaid of this {envelope.name} was not copied from a command of "
                f"that saga. If a restored database brings its row back, replay this dead letter."
            )
        record = work.records.get(saga_id)
        if record is None:
            try:
                record = record_of(definition, row)
            except UnreadableState as error:
                if is_final:
                    self._log.info("saga answer after its end", saga_id=saga_id, why=str(error))
                else:
                    self._park_unreadable(row, str(error), each, work)
                return
        transition = advance(definition, record, each.happening, now=transaction.now().timestamp())
        if each.saga_id is None and not row.is_open and not transition.has_changed:
            self._note_unmatched(each)
            return
        self._take(record, transition, saga_id, work, transaction, each, {})

    def _start(
        self, each: _Incoming, record: SagaRecord, work: _Work, transaction: Transaction
    ) -> None:
        if each.envelope.unique_id in work.rows:  # the inbox has forgotten the first one
            self._log.info("saga has been started already", saga_id=each.envelope.unique_id)
            return
        if record.parent is not None and each.key is not None:
            holder = work.rows.get(work.id_of(each.key) or "")
            if holder is not None and holder.is_open:
                with suppress(UnreadableState):  # then its key is refused when this is stored
                    current = work.records.get(holder.id) or record_of(self._definition, holder)
                    if again := ask_again(current, record.parent):
                        self._take(current, again, holder.id, work, transaction, each, {})
                        return
        now = transaction.now().timestamp()
        transition = take_first_steps(self._definition, record, now=now)
        self._take(record, transition, each.envelope.unique_id, work, transaction, each, {})

    def _take(
        self,
        current: SagaRecord,
        transition: Transition,
        saga_id: str,
        work: _Work,
        transaction: Transaction,
        each: _Incoming | None,
        entry: Mapping[str, Any],
    ) -> Transition:
        """Publish what a transition of the current record sends, and remember the rest of it to be
        stored. Returns the transition, or the parking of a saga whose author made a message that
        cannot be published: that is an error of its code, as if the function had raised it."""
        if transition.has_changed:
            try:
                with transaction.all_or_none() as publishing:
                    self._publish(transition, saga_id, publishing, each)
            except UsageError as error:
                happening = None if each is None else each.happening
                transition = park(current, str(error), happening)
                if each is None:
                    transition = replace(transition, rule="parked again")
        if each is not None:  # an operator reads it where they act
            self._log_rule(transition, saga_id, each)
        work.records[saga_id] = transition.record
        if transition.has_changed:
            self._remember(transition, saga_id, work, each, entry)
        return transition

    def _publish(
        self,
        transition: Transition,
        saga_id: str,
        transaction: Transaction,
        each: _Incoming | None,
    ) -> None:
        """Publish the commands, time-outs and the end of a transition. UsageError where one of its
        messages cannot be published."""
        definition, record = self._definition, transition.record
        cause = None if each is None else each.message
        chain = {"correlationid": record.correlation} if record.correlation else {}
        for sending in transition.sendings:
            labels = {"sagaid": f"{definition.name}/{saga_id}", "sagastep": sending.label}
            if sending.delay > 0:
                labels["id"] = delayed_id(definition.name, saga_id, sending.label)
            transaction.add(
                sending.command, extensions=labels | chain, delay=sending.delay, cause=cause
            )
        for label, seconds in transition.timers.items():
            signal = self._signal(saga_id=saga_id, label=label, what="timed_out")
            extensions = {
                "id": timer_id(definition.name, saga_id, label),
                "sagaid": "",
                "sagastep": "",
            }
            transaction.add(signal, extensions=extensions | chain, delay=seconds, cause=cause)
        if transition.ending is not None:
            # A child saga's end answers the step of its parent; nobody else waits for it.
            sagaid, sagastep = record.parent or ("", "")
            labels = {"sagaid": sagaid, "sagastep": sagastep}
            transaction.add(transition.ending, extensions=labels | chain, cause=cause)

    def _remember(
        self,
        transition: Transition,
        saga_id: str,
        work: _Work,
        each: _Incoming | None,
        entry: Mapping[str, Any],
    ) -> None:
        """Remember the row, the log, and the time-outs and commands of a transition that are to be
        deleted from the outbox. Conflict where one of these is not in it yet."""
        definition, record = self._definition, transition.record
        before = work.rows.get(saga_id)
        work.cancelled |= {
            timer_id(definition.name, saga_id, label) for label in transition.cancelled
        }
        work.delayed |= {
            delayed_id(definition.name, saga_id, sending.label)
            for sending in transition.sendings
            if sending.delay > 0
        }
        withdrawn = {delayed_id(definition.name, saga_id, label) for label in transition.withdrawn}
        if withdrawn & work.delayed:
            raise Conflict(
                f"a command of the saga {definition.name}/{saga_id} was to be sent again, and is "
                f"withdrawn by another message of the same group"
            )  # each is tried again alone
        work.withdrawn |= withdrawn
        row = row_of(
            definition,
            record,
            saga_id=saga_id,
            row_version=1 if before is None else before.row_version + 1,
            key=self._key_of(record) if before is None else before.key,
        )
        if before is not None and row.is_open and not before.is_open:
            work.opened.add(saga_id)
        if before is not None and saga_id in work.changed:
            row = replace(row, row_version=before.row_version)  # stored once for the group
        work.rows[saga_id] = work.changed[saga_id] = row
        work.log.append(LogEntry(saga_id, {**_entry(transition, each), **entry}))

    def _key_of(self, record: SagaRecord) -> str | None:
        if self._definition.key is None:
            return None
        try:
            found = self._definition.key(record.state)
            key = None if found is None else str(found)
        except Exception as error:
            raise RuntimeError(
                f"key= of the saga {self._definition.name} failed: {summarize(error)}"
            ) from error
        if key is not None and key != storable(key):
            raise UsageError(
                f"key= of the saga {self._definition.name} gave {key!r}, which not every database "
                f"can store. Give its sagas keys without NUL and lone surrogates."
            )
        return key

    async def claim_keys(self, database: Database) -> None:
        """Give their keys to open sagas that have none, because they were started before the code
        said `key=`: otherwise an event that finds its saga by key would not find them."""
        if self._definition.key is None:
            return
        ids = await database.read(
            lambda connection: sagas.keyless(connection, self._definition.name)
        )
        left = 0
        for start_at in range(0, len(ids), _CLAIMED_AT_ONCE):
            left += await self._claim_keys_of(database, ids[start_at : start_at + _CLAIMED_AT_ONCE])
        if left < len(ids):
            self._log.info("sagas without a key got one", number=len(ids) - left, left=left)

    async def _claim_keys_of(self, database: Database, ids: Sequence[str]) -> int:
        """Give their keys to these; returns how many still have none."""
        name = self._definition.name
        for _ in range(_CLAIMS):
            try:
                async with (
                    database.connection() as connection,
                    AsyncSession(bind=connection) as session,
                    session.begin(),
                ):
                    work = _Work({row.id: row for row in await sagas.lock(session, name, ids)})
                    for row in work.rows.values():
                        if row.is_open and row.key is None:
                            with suppress(UnreadableState, NewerVersion):  # it is parked later
                                work.records[row.id] = record_of(self._definition, row)
                                again = replace(row, row_version=row.row_version + 1)
                                work.changed[row.id] = again
                    await self._claim_keys(work, session)
                    claimed = [row for row in work.changed.values() if row.key is not None]
                    await sagas.store(session, name, claimed)
                    return len(work.changed) - len(claimed)
            except sagas.KeyTaken:  # by a saga that was started meanwhile
                continue
        return len(ids)

    async def _claim_keys(self, work: _Work, session: AsyncSession) -> None:
        """Give their keys to the sagas of this group that have none, or that are open again: where
        no other open saga has the key, which the unique index makes sure of."""
        wanted: dict[str, str] = {}
        for saga_id, row in work.changed.items():
            if row.row_version == 1 or not row.is_open or saga_id not in work.records:
                continue
            if row.key is not None and saga_id not in work.opened:
                continue
            try:
                key = row.key or self._key_of(work.records[saga_id])
            except (RuntimeError, UsageError) as error:
                self._log.warning("saga has no key", saga_id=saga_id, reason=str(error))
                continue
            if key is not None:
                wanted[saga_id] = key
        if not wanted:
            return
        holders = await sagas.holders_of(session, self._definition.name, set(wanted.values()))
        holders = {
            key: holder
            for key, holder in holders.items()
            if holder not in work.changed or work.changed[holder].is_open
        }
        holders |= {
            row.key: row.id
            for row in work.changed.values()
            if row.key is not None and row.is_open and row.id not in wanted
        }
        for saga_id, key in wanted.items():
            holder = holders.setdefault(key, saga_id)
            if holder != saga_id:
                self._log.warning(
                    "saga has no key", saga_id=saga_id, reason=f"the saga {holder} has {key!r}"
                )
            is_mine = holder == saga_id
            work.changed[saga_id] = replace(work.changed[saga_id], key=key if is_mine else None)

    def _park_unreadable(self, row: SagaRow, reason: str, each: _Incoming, work: _Work) -> None:
        assert each.happening is not None  # noqa: S101  # it exists already
        parked = parked_row(row, reason, hold_as(each.happening))
        work.rows[row.id] = work.changed[row.id] = parked
        entry = _entry_of_message(each, None) | {"rule": "parked", "status": "parked"}
        work.log.append(LogEntry(row.id, entry | {"why": reason}))
        self._log.warning("saga parked", saga_id=row.id, reason=reason)

    async def _store(self, work: _Work, transaction: Transaction) -> None:
        session, name = transaction.session, self._definition.name
        if self._definition.key is not None:
            await self._claim_keys(work, session)
        rows = [work.changed[saga_id] for saga_id in sorted(work.changed)]
        try:
            await sagas.store(session, name, rows, work.log, work.cancelled, work.withdrawn)
        except sagas.KeyTaken as error:
            new = [row for row in rows if row.row_version == 1 and row.key is not None]
            if len(rows) > 1 or not new:
                raise  # each is tried again alone
            raise Reject(
                f"a saga of {name} with the key {new[0].key!r} is open already, and two of one key "
                f"cannot be told apart. Replay this dead letter once the other has ended."
            ) from error

    def _note_unmatched(self, each: _Incoming) -> None:
        count = self._unmatched.note(each.envelope.name)
        if count:
            self._log.warning(
                "event matches no saga",
                name=each.envelope.name,
                message_id=each.envelope.id,
                key=each.key,
                count=count,
                hint=(
                    "no open saga has this key"
                    if each.key is not None
                    else "it has no attribute sagaid, and no step has correlate= for it"
                ),
            )

    def _log_rule(self, transition: Transition, saga_id: str, each: _Incoming) -> None:
        record, rule = transition.record, transition.rule
        details = {
            "saga_id": saga_id,
            "status": record.status,
            "rule": rule,
            "message": each.envelope.name,
            "step": str(_label_of(each, transition.taken_for) or ""),
        }
        if rule in _WARNED:
            self._log.warning("saga parked", **details, reason=record.reason)
        elif rule in _NOTED:
            self._log.info("saga answer out of turn", **details)
        else:
            self._log.debug("saga advanced", **details)


def coordinator_of(service: Service, saga: str | None) -> Coordinator:
    """The coordinator of this saga, by its whole name or the part after the service's; None is for
    a service with one saga. UsageError."""
    known = {name: each for name, each in service.sagas.items() if isinstance(each, Coordinator)}
    if not known:
        raise UsageError(
            f"Service {service.name!r} has no saga: nothing is given to service.include."
        )
    if saga is None:
        if len(known) > 1:
            raise UsageError(f"Service {service.name!r} has several sagas: {', '.join(known)}.")
        return next(iter(known.values()))
    found = known.get(saga) or known.get(f"{service.name}.{saga}")
    if found is None:
        raise UsageError(
            f"Service {service.name!r} has no saga {saga!r}; it has {', '.join(known)}."
        )
    return found


def _label_of(each: _Incoming, taken_for: Label | None) -> Label | None:
    """What a message answers, by the label of this saga that it carries. A message that starts a
    saga, or finds it by its key, may carry labels of another one, which say nothing here."""
    match each.happening:
        case (
            Answered(label=str() as text)
            | WaitedTooLong(label=text)
            | CommandDeadLettered(label=text)
        ):
            return parse_label(text)
    return taken_for


def _entry(transition: Transition, each: _Incoming | None) -> dict[str, Any]:
    """What the saga's log keeps of a transition."""
    entry: dict[str, Any] = {"rule": transition.rule, "status": transition.record.status}
    if each is not None:
        entry |= _entry_of_message(each, transition.taken_for)
    elif transition.taken_for is not None:
        entry["step"] = str(transition.taken_for)
    if transition.sendings:
        entry["sent"] = [sending.label for sending in transition.sendings]
    if transition.ending is not None:
        entry["announced"] = transition.ending.__identity__.name
    if transition.record.parking is not None:
        entry["why"] = transition.record.parking.reason
    return entry


def _entry_of_message(each: _Incoming, taken_for: Label | None) -> dict[str, Any]:
    """The part of a log's entry that tells which message was applied."""
    entry = {"message": each.envelope.name, "message_id": each.envelope.id}
    label = _label_of(each, taken_for)
    if label is not None:
        entry["step"] = str(label)
    if isinstance(each.message, SagaSignal):
        entry["message"] = each.message.what
        if each.message.reason:
            entry["why"] = each.message.reason
    return entry
