"""A reaction to an event, declared together with what undoes it: choreography with a way back.

    @service.reaction(OrderPlaced, undone_by=OrderCancelled)
    async def collect(event: OrderPlaced, tx: Transaction) -> int: ...

    @collect.undo
    async def give_back(event: OrderCancelled, points: int, tx: Transaction) -> None: ...

What the reaction returns is recorded in the transaction of its effect, under the key of its event,
and handed to the undo when the other event comes with the same key. For each key the reaction
happens once, and is undone once:

| what comes                        | nothing yet     | done         | undone  | cancelled       |
|-----------------------------------|-----------------|--------------|---------|-----------------|
| the event                         | react: done     | (see below)  | nothing | nothing         |
| the event that undoes             | cancelled       | undo: undone | nothing | nothing         |

A second event of a key is a dead letter, unless it is a copy of the first: it would be lost, and
it means that the key does not tell apart what the reaction is about.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, TypeVar, get_type_hints

import structlog
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import to_json

from eventmesh.contracts.message import Event, Message, identity_of, key_of
from eventmesh.errors import Reject, UsageError
from eventmesh.persistence import reactions
from eventmesh.persistence.reactions import ReactionRow
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.storable import storable
from eventmesh.transports.base import Subscription
from eventmesh.wire.envelope import Envelope

Reacted = TypeVar("Reacted", bound=Event)
Undoing = TypeVar("Undoing", bound=Event)
Result = TypeVar("Result")

React = Callable[[Reacted, Transaction], Awaitable[Result]]
Undo = Callable[[Undoing, Result, Transaction], Awaitable[None]]


class Reaction(Generic[Reacted, Undoing, Result]):
    """A function that reacts to an event once for each key, and what undoes it; made by
    `service.reaction`."""

    def __init__(
        self,
        subscription: str,
        event: type[Reacted],
        undone_by: type[Undoing],
        function: React[Reacted, Result],
    ) -> None:
        self.subscription = subscription
        self._event = event
        self._undone_by = undone_by
        self._function = function
        self._undo: Undo[Undoing, Result] | None = None
        self._where = f"The reaction {subscription}"
        for model in (event, undone_by):
            if not (isinstance(model, type) and issubclass(model, Event)):
                raise UsageError(f"{self._where} was given {model!r}, which is not an event.")
            if identity_of(model).key is None:
                raise UsageError(
                    f"{self._where} cannot take {model.__name__}, which has no key: its effects "
                    f"are recorded by it. Write class {model.__name__}(Event, …, key=…)."
                )
        if identity_of(event).name == identity_of(undone_by).name:
            raise UsageError(f"{self._where} is undone by the event that it reacts to.")
        hints = self._hints_of(function, (event, Transaction))
        try:
            self._result: TypeAdapter[Any] = TypeAdapter(hints.get("return", Any))
        except PydanticSchemaGenerationError as error:
            raise UsageError(
                f"{self._where} returns what cannot be recorded as JSON: return a pydantic model, "
                f"a value such as int, str or UUID, or None."
            ) from error

    def __repr__(self) -> str:
        return f"<reaction {self.subscription}>"

    def __str__(self) -> str:
        return self._where

    def __call__(self, event: Reacted, tx: Transaction) -> Awaitable[Result]:
        """Call the decorated function, as a unit test does."""
        return self._function(event, tx)

    def undo(self, function: Undo[Undoing, Result]) -> Undo[Undoing, Result]:
        """Decorate the function that undoes the reaction, with what the reaction has returned."""
        if self._undo is not None:
            raise UsageError(f"{self._where} has two undos: remove one.")
        self._hints_of(function, (self._undone_by, None, Transaction))
        self._undo = function
        return function

    @property
    def function(self) -> React[Reacted, Result]:
        """The decorated function."""
        return self._function

    @property
    def undo_function(self) -> Undo[Undoing, Result] | None:
        """The function that undoes it, if one is declared."""
        return self._undo

    def require_undo(self) -> None:
        """UsageError if nothing undoes this reaction."""
        if self._undo is None:
            name = getattr(self._function, "__name__", "…")
            raise UsageError(
                f"{self._where} has no undo: decorate a function with @{name}.undo. A handler "
                f"whose effect stays is declared with @service.subscriber."
            )

    def handler(self, **options: Any) -> Handler:
        """The handler of both events, with these options of a subscription."""
        models = {identity_of(model).name: model for model in (self._event, self._undone_by)}
        return Handler(
            subscription=Subscription(self.subscription, tuple(models)),
            models=models,
            call=self._handle,
            call_batch=self._handle_batch,
            transactional=True,
            function=self._function,
            **options,
        )

    async def _handle(
        self, message: Message, envelope: Envelope, transaction: Transaction | None
    ) -> None:
        await self._handle_batch((message,), (envelope,), transaction)

    async def _handle_batch(
        self,
        messages: Sequence[Message],
        envelopes: Sequence[Envelope],
        transaction: Transaction | None,
    ) -> None:
        if transaction is None:
            raise UsageError("A reaction works in a transaction.")
        keys = [self._key_of(message) for message in messages]
        rows = await reactions.lock(transaction.session, self.subscription, set(keys))
        known, changed = set(rows), set()
        for key, message, envelope in zip(keys, messages, envelopes, strict=True):
            row = await self._apply(rows.get(key), key, message, envelope, transaction)
            if row is not None:
                rows[key] = row
                changed.add(key)
        await reactions.store(
            transaction.session,
            self.subscription,
            new=[rows[key] for key in changed - known],
            changed=[rows[key] for key in changed & known],
        )

    async def _apply(
        self,
        row: ReactionRow | None,
        key: str,
        message: Message,
        envelope: Envelope,
        transaction: Transaction,
    ) -> ReactionRow | None:
        """Do what a message asks for; returns the row if that has changed it."""
        if isinstance(message, self._event):
            if row is None:
                with transaction.caused_by(message) as tx:
                    result = await self._function(message, tx)
                return ReactionRow(key, "done", envelope.unique_id, self._recorded(result))
            if row.status == "done" and row.message_id != envelope.unique_id:
                raise Reject(
                    f"{self.subscription} has reacted to another {envelope.name} with the key "
                    f"{key!r}: a reaction happens once for each key."
                )
            self._log.info("reaction skipped", key=key, status=row.status)
            return None
        if row is None:
            self._log.info("reaction cancelled before its event came", key=key)
            return ReactionRow(key, "cancelled")
        if row.status != "done":
            return None
        if self._undo is None or not isinstance(message, self._undone_by):
            raise AssertionError(message)  # see `require_undo`
        with transaction.caused_by(message) as tx:
            await self._undo(message, self._read(row), tx)
        return ReactionRow(key, "undone", row.message_id, row.result)

    def _recorded(self, result: Result) -> dict[str, Any]:
        """What the reaction has returned, as the table keeps it."""
        # By name, because an alias may be for reading or for writing only; and without computed
        # fields, which a model with `extra="forbid"` does not take.
        data = self._result.dump_python(result, mode="json", by_alias=False, round_trip=True)
        return {"result": data, "by_name": True}

    def _read(self, row: ReactionRow) -> Result:
        """What the reaction has returned, also if other code has recorded it."""
        recorded = row.result or {}
        data = to_json(recorded.get("result"))
        try:
            if recorded.get("by_name"):
                return self._validated(data, by_alias=False)
            # Recorded by an earlier release, which wrote names or aliases, as the model's
            # configuration said, and computed fields.
            with suppress(ValidationError):
                return self._validated(data, by_alias=True)
            return self._validated(data, by_alias=True, extra="ignore")
        except ValidationError as error:
            raise RuntimeError(
                f"{self.subscription} has recorded for the key {row.key!r} what its code cannot "
                f"read any more: {error.errors(include_url=False)[0]['msg']}"
            ) from error

    def _validated(self, data: bytes, **how: Any) -> Result:
        result: Result = self._result.validate_json(data, by_name=True, **how)
        return result

    def _key_of(self, message: Message) -> str:
        key = key_of(message)
        if key is None:
            raise Reject(f"its key is empty, and {self.subscription} records its effects by it.")
        return storable(key)  # a foreign event's may hold a NUL

    @cached_property
    def _log(self) -> structlog.stdlib.BoundLogger:
        log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.reaction")
        return log.bind(subscription=self.subscription)

    def _hints_of(
        self, function: Callable[..., Any], given: Sequence[type[Any] | None]
    ) -> dict[str, Any]:
        """The annotations of a function that takes these; UsageError where it does not."""
        name = getattr(function, "__name__", repr(function))
        if not inspect.iscoroutinefunction(function):
            raise UsageError(f"{self._where}: {name} is not a coroutine: write `async def {name}`.")
        try:
            hints = get_type_hints(function)
        except (NameError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{self._where}: {name} has an annotation that cannot be resolved: {error}. Import "
                f"that name at the top of the module, not under TYPE_CHECKING."
            ) from None
        parameters = list(inspect.signature(function).parameters)
        if len(parameters) != len(given):
            raise UsageError(
                f"{self._where}: {name} takes {len(parameters)} parameters, and it is called with "
                f"{len(given)}."
            )
        for parameter, kind in zip(parameters, given, strict=True):
            hint = hints.get(parameter, Any)
            if kind is not None and hint is not Any and hint is not kind:
                raise UsageError(
                    f"{self._where}: {name} takes {parameter} of another type than it is called "
                    f"with: annotate it with {kind.__name__}."
                )
        return hints
