"""The kit as others get it: from a wheel, in a project and an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import time_machine

ROOT = Path(__file__).parents[2]

SERVICE = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Service, Transaction


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "books"
    title: Mapped[str] = mapped_column(primary_key=True)


class AddBook(Command, name="library.add_book", version=1, key="title"):
    title: str


class BookAdded(Event, name="library.book_added", version=1, key="title"):
    title: str


service = Service("library", metadata=Base.metadata)


@service.subscriber(AddBook)
async def add(command: AddBook, tx: Transaction) -> BookAdded:
    tx.session.add(Book(title=command.title))
    return BookAdded(title=command.title)
"""

TESTS = """
import pytest

import eventmesh
from eventmesh.testing.mesh import Mesh
from library import AddBook, Book, BookAdded, service


def test_the_wheel_is_what_is_tested() -> None:
    assert eventmesh.__file__.startswith(ENVIRONMENT)


async def test_a_book_is_announced(mesh: Mesh) -> None:
    await mesh.start(service)
    await mesh.publish(AddBook(title="Emma"))
    await mesh.quiet()
    mesh.expect(BookAdded, title="Emma")


@pytest.mark.mesh(seeds=4)
async def test_no_book_is_lost(mesh: Mesh) -> None:
    @mesh.eventually
    def it_is_there(read) -> bool:
        return read(service).get(Book, "Emma") is not None

    await mesh.start(service, workers=2)
    await mesh.publish(AddBook(title="Emma"))
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment in which a new wheel is installed. It shares what the wheel needs with
    the one that runs these tests, so that no package index is asked."""
    pytest.importorskip("setuptools", "77", reason="builds the wheel")
    source, made = tmp_path / "source", tmp_path / "environment"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "eventmesh", source / "eventmesh", ignore=shutil.ignore_patterns("__pycache__")
    )
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    wheel = run("-c", build, folder=source).splitlines()[-1]
    venv.create(made)
    run(
        *("-m", "pip", "--python", str(made / "bin" / "python"), "install", "--quiet"),
        *("--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile", wheel),
        folder=source,
    )
    [packages] = made.glob("lib/python*/site-packages")
    shared = Path(time_machine.__file__).parents[1]
    (packages / "shared.pth").write_text(f"{shared}\n")
    return made


def run(*arguments: str, folder: Path, python: str = sys.executable) -> str:
    ended = subprocess.run(  # noqa: S603  # this very Python, or one made from it
        [python, *arguments],
        cwd=folder,
        env={
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_project_of_its_own_uses_the_wheel(environment: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "library.py").write_text(SERVICE)
    (project / "test_library.py").write_text(f"ENVIRONMENT = {str(environment)!r}\n{TESTS}")
    (project / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    said = run("-m", "pytest", "-q", folder=project, python=str(environment / "bin" / "python"))
    assert "3 passed" in said
