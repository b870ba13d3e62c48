"""The service whose workers are killed, for `benchmarks.takeover`: what one transaction publishes,
another notes."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Service
from eventmesh.contracts.message import Event
from eventmesh.persistence.transaction import Transaction


class Base(DeclarativeBase):
    """What the service owns."""


class Effect(Base):
    """A message that took effect. Nothing but the inbox keeps one from being here twice."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str]
    number: Mapped[int]


class Counted(Event, name="bench.counted", version=1, key="account"):
    """The numbers of an account only grow."""

    account: str
    number: int


def make_service() -> Service:
    """As each of its processes has it."""
    service = Service("bench", metadata=Base.metadata)
    service.publisher(Counted)

    @service.subscriber()
    async def note(event: Counted, tx: Transaction) -> None:
        tx.session.add(Effect(account=event.account, number=event.number))

    return service
