"""A service without a database: its handler has no part in a transaction."""

from __future__ import annotations

import os
from pathlib import Path

from eventmesh import Event, Service

DEADLY = 77
NOTES = "notes"
"""The file in the project's folder with a line for each message that was handled."""


class Asked(Event, name="feed.asked", version=1, key="account"):
    account: str
    number: int
    deed: str = ""


service = Service("scribe")


@service.subscriber(Asked)
async def note(event: Asked) -> None:
    if event.deed == "die":
        os._exit(DEADLY)
    with Path(NOTES).open("a") as notes:  # noqa: ASYNC230  # a line takes no time
        notes.write(f"{event.number}\n")
