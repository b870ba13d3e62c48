"""What handlers have done for good, seen from beside EventMesh's own tables.

Each call of a transactional handler is noted with the transaction in which it ran, and counts when
that is committed. So what takes effect twice is found whatever the inbox says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from eventmesh.contracts.message import Message
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.handler import Handler, Returned
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.testing.virtual.sqlite import on_commit
from eventmesh.wire.envelope import Envelope

Effect = tuple[str, str]
"""A subscription, and the id of a message."""


class Effects:
    """Counts what has taken effect."""

    def __init__(self) -> None:
        self.times = Counter[Effect]()
        self.calls = Counter[str]()
        """How often the handler of each subscription was called, whatever came of it."""

    def watch(self, service: Service) -> None:
        """Note the handlers of this copy of a service."""
        for name, handler in service.handlers.items():
            service.handlers[name] = self._watched(handler)

    @property
    def doubled(self) -> list[Effect]:
        return sorted(effect for effect, times in self.times.items() if times > 1)

    def _watched(self, handler: Handler) -> Handler:
        name = handler.subscription.name

        def call(
            message: Message, envelope: Envelope, transaction: Transaction | None
        ) -> Awaitable[Returned]:
            called = handler.call(message, envelope, transaction)
            return self._noted(called, name, [envelope], transaction)

        def call_batch(
            messages: Sequence[Message],
            envelopes: Sequence[Envelope],
            transaction: Transaction | None,
        ) -> Awaitable[Returned]:
            assert handler.call_batch is not None  # noqa: S101  # replaced only where there is one
            called = handler.call_batch(messages, envelopes, transaction)
            return self._noted(called, name, envelopes, transaction)

        several = None if handler.call_batch is None else call_batch
        return replace(handler, call=call, call_batch=several)

    async def _noted(
        self,
        called: Awaitable[Returned],
        subscription: str,
        envelopes: Sequence[Envelope],
        transaction: Transaction | None,
    ) -> Returned:
        self.calls[subscription] += 1
        returned = await called
        if transaction is not None:
            effects = [(subscription, envelope.unique_id) for envelope in envelopes]
            on_commit(_driver(transaction), lambda: self.times.update(effects))
        return returned


def _driver(transaction: Transaction) -> Any:
    """The driver's connection of a transaction that has begun."""
    connection = transaction.session.sync_session.connection()
    return connection.connection.driver_connection
