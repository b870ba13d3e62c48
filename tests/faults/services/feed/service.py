"""What is asked for: the messages that come in. They wait in this service's outbox until the broker
has them, so a test knows each of them to be promised."""

from __future__ import annotations

from eventmesh import Event, Service


class Asked(Event, name="feed.asked", version=1, key="account"):
    """`deed` is "" or "die", which ends whoever handles it."""

    account: str
    number: int
    deed: str = ""


service = Service("feed")
asked = service.publisher(Asked)
