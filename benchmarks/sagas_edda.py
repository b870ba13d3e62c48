"""Edda's workflow of three empty activities, and the import of Edda itself.

Edda 0.16.0 imports modules of cloudevents 1, which cloudevents 2 has under `cloudevents.v1`; our
tests need cloudevents 2. So they are made known under their old names before Edda is imported. The
releases after 0.16.0 cannot be installed beside cloudevents 2.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

CONNECTIONS, ON_DEMAND = 20, 40
"""What its documentation advises for production."""


@asynccontextmanager
async def edda_engine(database_url: str) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Runs the workflow of a trip to its end, with LISTEN/NOTIFY and the pool that is advised."""
    edda = _import()

    async def book_room(ctx: Any, trip: str) -> None:
        """Does nothing, as the other activities."""

    async def book_seat(ctx: Any, trip: str) -> None: ...

    async def charge_card(ctx: Any, trip: str) -> None: ...

    activities = [edda.activity(each) for each in (book_room, book_seat, charge_card)]

    @edda.workflow  # type: ignore[untyped-decorator]
    async def book(ctx: Any, trip: str) -> None:
        for activity in activities:
            await activity(ctx, trip)

    app = edda.EddaApp(
        service_name="benchmark",
        db_url=database_url,
        pool_size=CONNECTIONS,
        max_overflow=ON_DEMAND,
        use_listen_notify=True,
    )

    async def run(trip: str) -> None:
        await book.start(trip=trip)

    await app.initialize()
    try:
        yield run
    finally:
        await app.shutdown()
        await app.storage.engine.dispose()


def _import() -> Any:
    for name in ("exceptions", "http", "conversion"):
        sys.modules.setdefault(f"cloudevents.{name}", import_module(f"cloudevents.v1.{name}"))
    return import_module("edda")
