"""Meshes that run one after another find their databases as they were made."""

from __future__ import annotations

import pytest
from sqlalchemy import DDL, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Service, Transaction
from eventmesh.testing.mesh.databases import Workshop, temporary_workshop
from eventmesh.testing.mesh.running import make_mesh, run


class Enter(Command, name="register.enter", version=1, key="visitor"):
    visitor: str


def make_register(*statements: str) -> Service:
    """A service whose tables are made with these statements, too."""

    class Base(DeclarativeBase):
        pass

    class Visit(Base):
        __tablename__ = "visits"
        __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012  # as SQLAlchemy wants it
        number: Mapped[int] = mapped_column(primary_key=True)
        visitor: Mapped[str]

    for statement in statements:
        event.listen(Base.metadata, "after_create", DDL(statement))
    register = Service("register", metadata=Base.metadata)

    @register.subscriber(Enter)
    async def enter(command: Enter, tx: Transaction) -> None:
        tx.session.add(Visit(visitor=command.visitor))

    return register


def visits(workshop: Workshop, register: Service, *statements: str) -> list[tuple[int, str]]:
    """The visits that one mesh knows, after one of them, and after these statements."""
    found: list[tuple[int, str]] = []
    mesh = make_mesh(workshop)

    async def body() -> None:
        await mesh.start(register)
        await mesh.publish(Enter(visitor="ada"))
        await mesh.quiet()
        async with mesh.session(register) as session:
            rows = await session.execute(text("SELECT number, visitor FROM visits"))
            found.extend((number, visitor) for number, visitor in rows)
            for statement in statements:
                await session.execute(text(statement))

    run(mesh, body)
    return found


@pytest.mark.parametrize(
    "made_with",
    [
        [],
        ["INSERT INTO visits VALUES (7, 'bob')", "CREATE TABLE pairs (a, b AS (a + 1))"],
        ["CREATE TRIGGER kept BEFORE DELETE ON visits BEGIN SELECT RAISE(ABORT, 'kept'); END"],
    ],
    ids=["empty", "with rows", "with a trigger"],
)
def test_a_mesh_finds_nothing_of_the_one_before(made_with: list[str]) -> None:
    register = make_register(*made_with)
    with temporary_workshop() as workshop:
        first = visits(workshop, register)
        assert len(first) in (1, 2)
        assert visits(workshop, register, "CREATE TABLE extra (x)") == first
        assert visits(workshop, register, "CREATE TABLE extra (x)") == first


def test_a_service_with_other_tables_gets_a_database_of_its_own() -> None:
    with temporary_workshop() as workshop:
        assert visits(workshop, make_register()) == [(1, "ada")]
        other = make_register("INSERT INTO visits VALUES (7, 'bob')")
        assert visits(workshop, other) == [(7, "bob"), (8, "ada")]
        assert visits(workshop, make_register()) == [(1, "ada")]
