"""The service of `benchmarks.ordering_workers`: each worker writes down what it handles, in a file
of its folder, as lines of equal length: when, the key, and the number of the message."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TextIO

from benchmarks.messages import OrderPlaced
from eventmesh import Service
from eventmesh.wire.envelope import Envelope

EFFECTS = "effects"
LINE = len(f"{0:16.6f} {'key':>10} {0:>10}\n")

service = Service("bench")


@cache
def effects() -> TextIO:
    """The file, from the first message on."""
    return Path(EFFECTS).open("w", buffering=1)


@service.subscriber(name="handle", ordered=True)
async def handle(event: OrderPlaced, envelope: Envelope) -> None:
    """Write it down."""
    number = int(event.email.removeprefix("customer")[:8])
    effects().write(f"{time.monotonic():16.6f} {envelope.key:>10} {number:>10}\n")
