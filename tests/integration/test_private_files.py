"""What EventMesh makes in a project is private to its user; what is there stays as it is."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eventmesh.private_files import make_private_file

if TYPE_CHECKING:
    from tests.integration.conftest import Project

SQLITE = {name + end for name in ("broker.db", "bank.db") for end in ("", "-wal", "-shm")}

WITH_UMASK = "import os, sys; os.umask(int(sys.argv[1], 8)); os.execv(sys.executable, sys.argv[2:])"
"""A program that becomes another one, under this umask."""


def modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_mode & 0o777:o}" for path in sorted(folder.iterdir())}


def worked(project: Project, umask: str, **environment: str) -> dict[str, str]:
    """The modes in `.eventmesh/` while a worker runs."""
    worker = project.start_program(
        *("python", "-c", WITH_UMASK, umask),
        *("python", "-m", "eventmesh", "worker", "bank"),
        **environment,
    )
    worker.until_says("worker is ready")
    found = modes(project.root / ".eventmesh")
    worker.drain()
    return found


@pytest.mark.parametrize("umask", ["022", "000"])
def test_what_is_made_is_private(bank: Project, umask: str) -> None:
    assert worked(bank, umask) == dict.fromkeys(SQLITE, "600")
    assert f"{(bank.root / '.eventmesh').stat().st_mode & 0o777:o}" == "700"


def test_every_folder_on_the_way_is_private(bank: Project) -> None:
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = "sqlite:///data/of/bank.db"
    worked(bank, "000")
    for folder in ("data", "data/of"):
        assert f"{(bank.root / folder).stat().st_mode & 0o777:o}" == "700"
    assert set(modes(bank.root / "data/of").values()) == {"600"}


def test_what_was_there_keeps_its_mode(bank: Project) -> None:
    folder = bank.root / ".eventmesh"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "bank.db").touch()
    (folder / "bank.db").chmod(0o664)
    found = worked(bank, "022")
    assert {found[f"bank.db{end}"] for end in ("", "-wal", "-shm")} == {"664"}
    assert {found[f"broker.db{end}"] for end in ("", "-wal", "-shm")} == {"600"}
    assert f"{folder.stat().st_mode & 0o777:o}" == "755"


def test_what_is_left_of_a_deleted_database_is_not_taken_for_the_new_one_s(tmp_path: Path) -> None:
    for name in ("bank.db-wal", "bank.db-shm", "bank.db-journal", "other.db-wal"):
        (tmp_path / name).touch()
    make_private_file(tmp_path / "bank.db")
    assert modes(tmp_path).keys() == {"bank.db", "other.db-wal"}


def test_nobody_deletes_what_belongs_to_a_database_that_another_process_just_made(
    tmp_path: Path,
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    slower = threading.Thread(target=make_private_file, args=[tmp_path / "bank.db"])
    slower.start()
    for name in ("bank.db", "bank.db-wal"):
        (tmp_path / name).touch()
    os.close(folder)
    slower.join()
    assert modes(tmp_path).keys() == {"bank.db", "bank.db-wal"}
