"""A handler that keeps its state in a dict of the process.

When the transaction is rolled back, the dict is not: the message is handled again, and counted
again. (What a restart forgets, a simulation does not show: its workers share the modules.)
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Service, Transaction
from eventmesh.testing.mesh import Mesh


class Base(DeclarativeBase):
    pass


class Total(Base):
    __tablename__ = "totals"

    song: Mapped[str] = mapped_column(primary_key=True)
    plays: Mapped[int] = mapped_column(default=0)


class NotePlay(Command, name="charts.note_play", version=1, key="song"):
    song: str


class TotalChanged(Event, name="charts.total_changed", version=1, key="song"):
    song: str
    plays: int


totals = Counter[str]()

broken = Service("charts", metadata=Base.metadata)


@broken.subscriber(NotePlay, name="note")
async def note_in_memory(command: NotePlay) -> TotalChanged:
    totals[command.song] += 1
    return TotalChanged(song=command.song, plays=totals[command.song])


corrected = Service("charts", metadata=Base.metadata)


@corrected.subscriber(NotePlay)
async def note(command: NotePlay, tx: Transaction) -> TotalChanged:
    total = await tx.session.get(Total, command.song) or Total(song=command.song, plays=0)
    tx.session.add(total)
    total.plays += 1
    return TotalChanged(song=command.song, plays=total.plays)


async def body(mesh: Mesh, charts: Service) -> None:
    totals.clear()  # a new process begins without it

    @mesh.eventually
    def the_largest_total_is_the_number_of_plays(_read):  # type: ignore[no-untyped-def]
        assert max(event.plays for event in mesh.published(TotalChanged)) == 4

    await mesh.start(charts)
    for _ in range(4):
        await mesh.publish(NotePlay(song="Kashmir"))
